"""Bars for the stages of getting a model ready, on the standard error."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import rich.progress
from rich.console import Console
from rich.filesize import decimal

COMPILE = "compile"


class Bars:
    """One bar a stage; implements the `Progress` port."""

    def __init__(self, display: rich.progress.Progress) -> None:
        self._display = display
        self._tasks: dict[str, rich.progress.TaskID] = {}

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage not in self._tasks:
            self._tasks[stage] = self._display.add_task(stage, amount="")
        self._display.update(
            self._tasks[stage],
            completed=done,
            total=total or None,
            amount=amount(stage, done, total),
        )

    def stop(self) -> None:
        """Leaves the bars as they are; what comes later is not shown."""
        self._display.stop()


def amount(stage: str, done: int, total: int) -> str:
    """How far a stage is, in executables or bytes."""
    if stage == COMPILE:
        return f"{done} of {total}" if total else str(done)
    return f"{decimal(done)} of {decimal(total)}" if total else decimal(done)


@contextmanager
def bars(*, quiet: bool) -> Iterator[Bars]:
    """Shows bars while the context is open, if somebody is there to see them."""
    display = rich.progress.Progress(
        rich.progress.TextColumn("{task.description:>8}"),
        rich.progress.BarColumn(),
        rich.progress.TextColumn("{task.fields[amount]}"),
        rich.progress.TimeElapsedColumn(),
        console=Console(stderr=True),
        redirect_stdout=False,
        redirect_stderr=False,
        disable=quiet or not sys.stderr.isatty(),
    )
    with display:
        yield Bars(display)
