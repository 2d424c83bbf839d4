"""Compiles the closed list of executables, and counts what is compiled besides."""

import concurrent.futures
import ctypes
import itertools
import os
import threading
from collections.abc import Callable
from typing import TypeAlias

import jax
from jax.stages import Compiled

from jaxserver.core.executables import Steps
from jaxserver.ports.progress import Progress

_COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"


class CompileCounter:
    """Counts every compilation of the process, eager operations included."""

    def __init__(self) -> None:
        self.count = 0
        self._lock = threading.Lock()
        jax.monitoring.register_event_duration_secs_listener(self._hear)

    def _hear(self, event: str, duration_secs: float, **_: str | int) -> None:
        if event == _COMPILE_EVENT:
            with self._lock:
                self.count += 1


COMPILES = CompileCounter()
"""One for the process: JAX's listeners are."""


Remembered: TypeAlias = Callable[[str, int, Callable[[], Compiled]], Compiled]


class CompiledSteps:
    """The executables of one engine, each compiled at most once.

    Attributes:
        steps: How each is compiled.
    """

    def __init__(self, steps: Steps, remembered: Remembered | None = None) -> None:
        """Compiles nothing yet.

        Args:
            steps: How each is compiled.
            remembered: By kind, size and how it is compiled, one of another start.
        """
        self.steps = steps
        self._remembered = remembered
        self._build: dict[tuple[str, int], Callable[[], Compiled]] = {
            ("init", 0): steps.init,
            ("adopt", 0): steps.adopt,
            ("begin", 0): steps.begin,
            **{("prefill", time): build for time, build in steps.prefill.items()},
            **{("decode", rows): build for rows, build in steps.decode.items()},
            **{("take", size): build for size, build in steps.take.items()},
            **{("put", size): build for size, build in steps.put.items()},
        }
        self._compiled: dict[tuple[str, int], Compiled] = {}
        self._begun: list[concurrent.futures.Future[None]] = []
        self._locks = {key: threading.Lock() for key in self._build}

    def compile_all(self, progress: Progress) -> None:
        """Compiles whatever is not compiled yet, several at a time."""
        try:
            self.begin(progress)
            self.finish()
        finally:
            self.cancel()

    def begin(self, progress: Progress) -> None:
        """The same meanwhile; who wants one that is being compiled waits for it."""
        missing = [key for key in self._build if key not in self._compiled]
        count, counting = itertools.count(1), threading.Lock()

        def compile_one(key: tuple[str, int]) -> None:
            self.get(*key)
            _give_memory_back()
            with counting:
                progress("compile", next(count), len(missing))

        pool = concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1)
        self._begun = [pool.submit(compile_one, key) for key in missing]
        pool.shutdown(wait=False)

    def finish(self) -> None:
        """Waits for what was begun; the first error is told."""
        for future in concurrent.futures.as_completed(self._begun):
            future.result()
        if self._begun:
            _give_memory_back()
        self._begun = []

    def cancel(self) -> None:
        """What was begun, but has had no turn yet, is not wanted any more."""
        for future in self._begun:
            future.cancel()

    def get(self, kind: str, size: int) -> Compiled:
        """The executable of a kind and a size; see `core.executables.Kind`."""
        key = (kind, size)
        if key not in self._compiled:
            with self._locks[key]:
                if key not in self._compiled:
                    self._compiled[key] = self._made(key)
        return self._compiled[key]

    def _made(self, key: tuple[str, int]) -> Compiled:
        build = self._build[key]
        return self._remembered(*key, build) if self._remembered else build()


def _give_memory_back() -> None:
    """What the compiler has freed, the GNU C library keeps until it is told not to."""
    if os.name == "posix":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
