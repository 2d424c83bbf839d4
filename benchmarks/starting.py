"""Starts a server to measure, and counts how long it takes to be ready."""

import contextlib
import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

READY = "jaxserver ready on "
JAXSERVER = (sys.executable, "-m", "jaxserver")
SERVE = ("serve", "--quiet", "--no-logging", "--host", "127.0.0.1", "--port", "0")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """A server that answers.

    Attributes:
        ready_seconds: From the start of its process.
    """

    url: str
    pid: int
    ready_seconds: float


def fetch(model: str) -> str:
    """Where the model's file lies, fetched first where it is not there yet."""
    done = subprocess.run(
        [*JAXSERVER, "pull", model], stdout=subprocess.PIPE, text=True
    )
    if done.returncode:
        raise SystemExit(f"the model {model} could not be fetched")
    return done.stdout.strip()


@contextlib.contextmanager
def started(
    model: str,
    cache: Path,
    arguments: Sequence[str],
    program: Sequence[str] = JAXSERVER,
) -> Iterator[Started]:
    """A server on a free port of the loopback, stopped at the end.

    Args:
        model: A file or folder.
        cache: The folder in which it keeps compiled code.
        arguments: Further ones of `jaxserver serve`.
        program: What is called `jaxserver` there.
    """
    began = time.perf_counter()
    process = subprocess.Popen(
        [*program, *SERVE, "--model", model, *arguments],
        env={**os.environ, "JAXSERVER_CACHE": str(cache)},
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield Started(
                url=_ready_url(process),
                pid=process.pid,
                ready_seconds=time.perf_counter() - began,
            )
        finally:
            process.terminate()


def _ready_url(process: "subprocess.Popen[str]") -> str:
    for line in process.stdout or ():
        if line.startswith(READY):
            return line.removeprefix(READY).strip()
    raise SystemExit("the server ended before it was ready")
