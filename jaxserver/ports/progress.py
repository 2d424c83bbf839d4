"""The port that hears how far a long piece of work is."""

from typing import Protocol, runtime_checkable


@runtime_checkable
class Progress(Protocol):
    """Called now and then by whoever downloads, loads or compiles."""

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Reports `done` of `total` units of a stage: download, load or compile.

        Bytes for a download and for loading, executables for compiling. `total` is 0
        where it is not known.
        """
        ...


def no_progress(stage: str, done: int, total: int) -> None:
    """Nobody asked how far things are."""
