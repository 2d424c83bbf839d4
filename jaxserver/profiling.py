"""Watches what JAX does for a while, by its own profiler."""

import io
import tempfile
import threading
import zipfile
from pathlib import Path

import jax

from jaxserver.ports.errors import ProfileRunning

_TAKING = threading.Lock()
"""One for the process: JAX's profiler is."""


class JaxProfiler:
    """Implements the `Profiler` port; what it leaves on the disk is gone afterwards."""

    def capture(self, seconds: float, cancelled: threading.Event) -> bytes:
        if not _TAKING.acquire(blocking=False):
            raise ProfileRunning
        try:
            with tempfile.TemporaryDirectory(prefix="jaxserver-profile-") as folder:
                _watch(folder, seconds, cancelled)
                return _zipped(Path(folder))
        finally:
            _TAKING.release()


def _watch(folder: str, seconds: float, cancelled: threading.Event) -> None:
    try:
        jax.profiler.start_trace(folder)
    except RuntimeError as error:  # the program around us takes one of its own
        raise ProfileRunning from error
    try:
        cancelled.wait(seconds)
    finally:
        jax.profiler.stop_trace()


def _zipped(folder: Path) -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as files:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                files.write(path, path.relative_to(folder))
    return archive.getvalue()
