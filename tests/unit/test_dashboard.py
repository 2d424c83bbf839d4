"""The dashboard shows the metrics that there are: all of them, and no others."""

import json
import re
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

import jaxserver
from jaxserver.adapters.telemetry.metrics import MetricsTelemetry
from tests.fakes import FixedStatus

CHECKOUT = Path(jaxserver.__file__).parents[1]
DASHBOARD: dict[str, Any] = json.loads((CHECKOUT / "docs/grafana.json").read_text())
SCRAPE = MetricsTelemetry(FixedStatus().snapshot).scrape().decode()
FAMILIES = list(text_string_to_metric_families(SCRAPE))
SAMPLES = {sample.name for family in FAMILIES for sample in family.samples}
NAME = re.compile(r"\bjaxserver_\w+")


def written_names(text: str) -> set[str]:
    """Names of metrics; a histogram's three kinds of samples are one of them."""
    return {re.sub(r"_(bucket|sum|count)$", "", name) for name in NAME.findall(text)}


def expressions() -> list[str]:
    panels = DASHBOARD["panels"]
    return [target["expr"] for panel in panels for target in panel["targets"]]


def test_every_metric_of_the_dashboard_is_in_a_scrape() -> None:
    variables = json.dumps(DASHBOARD["templating"])
    shown = set(NAME.findall(" ".join([*expressions(), variables])))
    assert shown
    assert shown <= SAMPLES


def test_every_metric_of_a_scrape_is_in_the_dashboard() -> None:
    written = written_names(" ".join(SAMPLES))
    assert written == written_names(" ".join(expressions()))
    assert len(written) == len(FAMILIES)


def test_every_label_of_the_dashboard_is_in_a_scrape_or_prometheus_own() -> None:
    labels = {
        label for family in FAMILIES for s in family.samples for label in s.labels
    }
    used = " ".join(expressions())
    grouped = set(re.findall(r"by \((\w+)\)", used)) | set(re.findall(r"(\w+)=", used))
    assert grouped <= labels | {"job", "instance"}
    assert grouped >= {"le", "outcome"}


def test_panels_neither_overlap_nor_share_an_id() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    cells = [
        (x, y)
        for panel in DASHBOARD["panels"]
        for x in range(panel["gridPos"]["x"], sum_of(panel, "x", "w"))
        for y in range(panel["gridPos"]["y"], sum_of(panel, "y", "h"))
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24


def sum_of(panel: dict[str, Any], *keys: str) -> int:
    return sum(int(panel["gridPos"][key]) for key in keys)


def test_every_metric_is_in_the_readme() -> None:
    section = (CHECKOUT / "README.md").read_text().split("## Watching it")[1]
    told = NAME.findall(section.split("## ")[0])
    assert written_names(" ".join(SAMPLES)) == set(told)
    assert len(told) == len(set(told))
