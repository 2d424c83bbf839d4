"""What the README says about configuration and routes is so.

`--update-golden` writes the configuration table anew.
"""

import dataclasses
import json
import re
import shlex
from pathlib import Path

import pytest

import jaxserver
from jaxserver import ServerConfig
from tests.unit.adapters.cli.scripted import ScriptedProgram
from tests.unit.adapters.http.in_process import app_of

CHECKOUT = Path(jaxserver.__file__).parents[1]
FILE = CHECKOUT / "README.md"
README = FILE.read_text()
PAGES = {("GET", "/gradio_chat"), ("GET", "/gradio_instruct")}


def configuration_table() -> str:
    """The table that belongs into the README."""
    rows = [("key", "default", "meaning"), ("---",) * 3]
    for field in dataclasses.fields(ServerConfig):
        default, allowed = field.default, field.metadata["rule"].allowed
        shown = "" if default in (None, "") else f"`{json.dumps(default)}`"
        meaning = field.metadata["help"]
        if allowed.startswith("one of "):
            meaning += f" {allowed.capitalize()}."
        rows.append((f"`{field.name}`", shown, meaning))
    return "".join(f"| {' | '.join(cells)} |\n" for cells in rows)


def test_every_key_and_its_default_are_in_the_table(
    pytestconfig: pytest.Config,
) -> None:
    table = configuration_table()
    if pytestconfig.getoption("--update-golden"):
        old = re.compile(r"(\| key \|.*\n)(\|.*\n)*")
        FILE.write_text(old.sub(lambda _: table, README))
    assert table in FILE.read_text()


def test_every_route_is_in_the_table() -> None:
    served = {
        (method.upper(), path)
        for path, methods in app_of().openapi()["paths"].items()
        for method in methods
    }
    section = README.split("## Routes")[1].split("## ")[0]
    told = set(re.findall(r"`(GET|POST) (/[^`]*)`", section))
    assert told == served | PAGES


def test_every_file_that_is_linked_is_there() -> None:
    links = re.findall(r"\]\(([^#)][^)]*)\)", README)
    assert len(links) > 5
    assert [link for link in links if not (CHECKOUT / link).exists()] == []


def test_both_commands_are_one_line_each() -> None:
    lines = [line for line in README.splitlines() if "pip install" in line]
    assert len(lines) == 2
    assert all(line.startswith("python3 -m venv .venv && ") for line in lines)


@pytest.mark.parametrize(
    "line", re.findall(r"^\.venv/bin/jaxserver (.*)$", README, re.MULTILINE)
)
def test_what_is_typed_in_the_terminal_is_taken(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    written = ScriptedProgram().run("generate", "hi", "--receipt", "rivers.json")
    assert written.exit_code == 0
    result = ScriptedProgram().run(*shlex.split(line), input_text="hi\n")
    assert result.exit_code == 0, result.output
