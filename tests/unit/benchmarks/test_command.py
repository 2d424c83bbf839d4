import json
import subprocess
import sys
from pathlib import Path

import benchmarks
from tests.fakes import ScriptedGenerator
from tests.unit.benchmarks.serving import serving

SCRIPT = Path(*benchmarks.__path__) / "http.py"


def measure(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, SCRIPT, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_server_that_runs_already_is_measured(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    with serving(ScriptedGenerator("a", "b", "c")) as url:
        done = measure("--url", f"{url}/v1/", "--clients", "1,2", "--json", file)

    assert done.returncode == 0, done.stderr
    head, dashes, *rows = done.stdout.splitlines()
    assert (
        {line.count("|") for line in rows} == {head.count("|")} == {dashes.count("|")}
    )
    assert [row.split()[1] for row in rows] == ["1", "2"]
    written = json.loads(file.read_text())
    assert [run["completed"] for run in written["runs"]] == [8, 8]
    assert written["ready_seconds"] == {}


def test_failed_requests_fail_the_command() -> None:
    with serving(ScriptedGenerator()) as url:
        done = measure("--url", url, "--clients", "1", "--requests", "2")
    assert done.returncode == 1
    assert "failed: RequestFailed" in done.stderr
    assert done.stderr.splitlines()[-1] == "some requests failed"
