"""Digests of files, which say whether two models are the very same."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

READ_BYTES = 2**22
"""Much at a time: between two pieces a busy program may keep the reader waiting."""


def file_digest(path: Path) -> str:
    """A file's SHA-256, in hexadecimal digits."""
    made, piece = hashlib.sha256(), memoryview(bytearray(READ_BYTES))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(piece):
            made.update(piece[:count])
    return made.hexdigest()


def files_digest(files: Sequence[str]) -> str:
    """Of one file its own; of several that of the lines `sha256sum` prints for them."""
    digests = {Path(file).name: file_digest(Path(file)) for file in files}
    if len(digests) == 1:
        return next(iter(digests.values()))
    lines = "".join(f"{digest}  {name}\n" for name, digest in digests.items())
    return hashlib.sha256(lines.encode()).hexdigest()
