"""An answer as far as it has come, in a file: a receipt, and what the cache held.

A safetensors file; the receipt is JSON in its header.
"""

import json
import os
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
from safetensors.numpy import save_file

from jaxserver.adapters.engine.requests import KeptPages
from jaxserver.ports.errors import BrokenCheckpoint, InvalidRequest
from jaxserver.ports.receipt import Receipt

_FIELDS = ("format", "receipt", "is_finished", "length", "pages", "leaves")
_FORMAT = 2
"""In which the last dimension of a leaf are tokens."""


class Saved(NamedTuple):
    """What a file holds.

    Attributes:
        receipt: Of the answer so far; the last token's keys and values are missing.
        is_finished: Its reader has got all of its text.
        kept: Of the prompt and the answer, what was still in the cache.
    """

    receipt: Receipt
    is_finished: bool
    kept: KeptPages


def write(path: Path, saved: Saved) -> None:
    """Writes a file whole, or not at all."""
    receipt, is_finished, kept = saved
    tensors = {
        _name(page, leaf): array
        for page, leaves in enumerate(kept.leaves)
        for leaf, array in enumerate(leaves)
    }
    header = {
        "format": _FORMAT,
        "receipt": receipt.to_json(),
        "is_finished": is_finished,
        "length": kept.length,
        "pages": len(kept.leaves),
        "leaves": len(kept.leaves[0]) if kept.leaves else 0,
    }
    metadata = {name: json.dumps(value) for name, value in header.items()}
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}") as folder:
        whole = Path(folder) / "whole"
        save_file(tensors, whole, metadata)
        os.replace(whole, path)


def read(path: Path) -> Saved:
    """Reads what `write` has written.

    Raises:
        BrokenCheckpoint: The file is not there, or is none of these.
    """
    try:
        with safetensors.safe_open(path, "numpy") as file:
            header = _header(path, file.metadata() or {}, len(file.keys()))
            receipt = Receipt.from_json(header["receipt"])
            pages, leaves = header["pages"], header["leaves"]
            kept = tuple(
                tuple(file.get_tensor(_name(page, leaf)) for leaf in range(leaves))
                for page in range(pages)
            )
    except (safetensors.SafetensorError, OSError, InvalidRequest) as error:
        raise _broken(path, str(error)) from error
    return Saved(receipt, header["is_finished"], KeptPages(header["length"], kept))


def _header(path: Path, metadata: dict[str, str], num_tensors: int) -> dict[str, Any]:
    try:
        header = {name: json.loads(metadata[name]) for name in _FIELDS}
    except (KeyError, ValueError, RecursionError) as error:
        raise _broken(path, f"a header without {error}") from error
    if header["format"] != _FORMAT:
        raise _broken(path, f"format {header['format']}"[:80])
    counts = (header["length"], header["pages"], header["leaves"])
    are_counts = all(type(count) is int and count >= 0 for count in counts)
    if not are_counts or type(header["is_finished"]) is not bool:
        raise _broken(path, f"counts that are none: {counts}"[:80])
    _, pages, leaves = counts
    if pages * leaves != num_tensors or bool(pages) != bool(leaves):
        raise _broken(path, f"{num_tensors} arrays, said to be {counts}"[:80])
    return header


def _name(page: int, leaf: int) -> str:
    return f"page.{page}.{leaf}"


def _broken(path: Path, found: str) -> BrokenCheckpoint:
    expected = "an answer that `Stream.save` has written"
    return BrokenCheckpoint(str(path), None, expected=expected, found=found)
