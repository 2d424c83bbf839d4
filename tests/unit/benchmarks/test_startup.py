import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx
import pytest

from benchmarks import startup
from benchmarks.starting import Started


def test_starts_with_an_empty_and_with_a_full_cache_are_told_apart(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    heard: list[Sequence[str]] = []

    @contextlib.contextmanager
    def start(model: str, cache: Path, arguments: Sequence[str]) -> Iterator[Started]:
        heard.append(arguments)
        code = cache / "code"
        seconds = 2.0 if code.exists() else 9.0 + len(heard)
        code.touch()
        yield Started(url="", pid=os.getpid(), ready_seconds=seconds)

    monkeypatch.setattr(startup, "started", start)
    monkeypatch.setattr(startup, "fetch", lambda model: model)
    planned = {"memory": {"weights": 2**20, "cache": 2**21}}
    answer = httpx.Response(200, json=planned)
    monkeypatch.setattr(httpx, "get", lambda url: answer)
    written = tmp_path / "starts.json"
    startup.main(["--slots", "3", "--json", str(written), "--", "--quantize", "int8"])
    told = capsys.readouterr().out
    assert "| empty | 3 | 12.0 | 14.0 |" in told
    assert "| full | 3 | 2.0 | 2.0 |" in told
    assert heard == [["--slots", "3", "--quantize", "int8"]] * 6
    found = json.loads(written.read_text())
    assert found["ready_seconds"] == {"empty": [10.0, 12.0, 14.0], "full": [2.0] * 3}
    for held in found["resident_mib"]:
        assert (held["weights"], held["cache"]) == (1, 2)
        assert held.pop("in all") == pytest.approx(sum(held.values()))
