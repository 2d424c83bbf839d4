import io
import sys

import pytest

from jaxserver.adapters.cli.progress import amount, bars


class TerminalText(io.StringIO):
    """Remembers what is written to it, and says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stage", "done", "total", "expected"),
    [
        ("download", 5_000_000, 93_000_000, "5.0 MB of 93.0 MB"),
        ("load", 1500, 0, "1.5 kB"),
        ("compile", 3, 12, "3 of 12"),
        ("compile", 3, 0, "3"),
    ],
)
def test_amounts_are_bytes_or_executables(
    stage: str, done: int, total: int, expected: str
) -> None:
    assert amount(stage, done, total) == expected


def test_bars_show_every_stage_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = TerminalText()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with bars(quiet=False) as progress:
        progress("load", 1, 2)
        progress("load", 2, 2)
        progress("compile", 0, 0)
    shown = terminal.getvalue()
    assert "2 bytes of 2 bytes" in shown
    assert "compile" in shown


def test_bars_are_silent_where_nobody_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    for quiet, stream in ((True, TerminalText()), (False, io.StringIO())):
        monkeypatch.setattr(sys, "stderr", stream)
        with bars(quiet=quiet) as progress:
            progress("load", 1, 2)
            progress.stop()
        assert stream.getvalue() == ""
