"""Turns a folder that somebody else fills into reports of a download's progress."""

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

from jaxserver.ports.progress import Progress

_SECONDS_BETWEEN_REPORTS = 0.1


@contextlib.contextmanager
def report_growth(folder: Path, total: int, progress: Progress) -> Iterator[None]:
    """Reports the folder's bytes as those downloaded, from a thread, while it is open.

    The last report says that everything is there, unless an exception passes through.
    """
    finished = threading.Event()

    def watch() -> None:
        while not finished.wait(_SECONDS_BETWEEN_REPORTS):
            progress("download", min(_num_bytes(folder), total), total)

    watcher = threading.Thread(target=watch, name="download progress", daemon=True)
    progress("download", 0, total)
    watcher.start()
    try:
        yield
    finally:
        finished.set()
        watcher.join()
    progress("download", total, total)


def _num_bytes(folder: Path) -> int:
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):  # files come and go while we look
                total += os.stat(os.path.join(parent, name)).st_size
    return total
