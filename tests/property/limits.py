"""Holds a block of code to the memory and the folder that it may use."""

import contextlib
import os
import re
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.symlink", "os.link", "os.rmdir"}
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGED: list[str] | None = None


def _note(event: str, args: tuple[Any, ...]) -> None:
    """Python calls it with everything that goes on; it cannot be taken away again."""
    if _CHANGED is None:
        return
    if event in _CHANGES or (event == "open" and (args[2] or 0) & _WRITES):
        _CHANGED.append(os.fsdecode(args[0]) if not isinstance(args[0], int) else "")


sys.addaudithook(_note)


@contextlib.contextmanager
def only_writing_into(folder: Path) -> Iterator[None]:
    """Whatever the block makes, changes or removes has to be in this folder."""
    global _CHANGED
    changed: list[str] = []
    _CHANGED = changed
    try:
        yield
    finally:
        _CHANGED = None
    outside = [path for path in changed if folder not in Path(path).absolute().parents]
    assert [path for path in outside if path != os.devnull] == []


@contextlib.contextmanager
def no_more_memory_than(more_bytes: int) -> Iterator[None]:
    """The process gets no more addresses than it has and these."""
    status = Path("/proc/self/status").read_text()
    found = re.search(r"^VmSize:\s+(\d+) kB", status, re.MULTILINE)
    assert found is not None
    before = resource.getrlimit(resource.RLIMIT_AS)
    limit = int(found[1]) * 1024 + more_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def ran_out_of_memory(error: BaseException | None) -> bool:
    """Whether memory was the reason for an error, or for a reason of it."""
    while error is not None:
        if isinstance(error, MemoryError):
            return True
        error = error.__cause__ or error.__context__
    return False
