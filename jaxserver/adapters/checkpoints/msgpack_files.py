"""Reads the msgpack files of Flax: a tree in one file or in shards, or a stream.

The stream is what EasyLM and EasyDeL call a streaming checkpoint: one pair after the
other of a name's parts and the array, packed as Flax packs it. Which of the two a file
is, its first value says. Nothing is unpickled, and no file is read as a whole.
"""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  # teaches numpy the name bfloat16
import numpy as np

from jaxserver.adapters.checkpoints.folder import (
    CONFIG,
    broken,
    files_of,
    of_shards,
    place_of,
    read_json,
    unreadable,
)
from jaxserver.adapters.checkpoints.msgpack_scan import Scanner, Span
from jaxserver.ports.tensors import Checkpoint, HostArray

INDEX = "flax_model.msgpack.index.json"
_FLOAT_TYPES = ("float64", "float32", "float16", "bfloat16")
_ITEM_BYTES = {name: np.dtype(name).itemsize for name in _FLOAT_TYPES} | {
    **{f"{kind}{8 * size}": size for kind in ("int", "uint") for size in (1, 2, 4, 8)},
    "bool": 1,
}
_ARRAYS = (1, 3)
"""Codes of Flax's extensions: an array, and an array without axes."""
_CHUNKED = "__msgpack_chunked_array__"
_ROOT = "params."


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Stored:
    """One array: what its bytes mean, and the pieces that they lie in."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    pieces: tuple[Span, ...]


def open_msgpack(folder: Path, file: Path | None = None) -> Checkpoint:
    """Finds every array in a folder's files; the parts of a name are joined by dots.

    A root `params` that all names have in common is left out.

    Args:
        folder: With a `config.json`.
        file: The one file to read; None takes the shards that the index names.

    Raises:
        BrokenCheckpoint: A file is missing, cut short, or not what another says it is.
    """
    sharded = folder / INDEX
    places = of_shards(sharded, _scan, "/") if file is None else _scan(file)
    while places and all(name.startswith(_ROOT) for name in places):
        places = {name.removeprefix(_ROOT): place for name, place in places.items()}
    return Checkpoint(
        path=str(folder),
        layout="flax",
        config=read_json(folder / CONFIG),
        tensors=MsgpackTensors(places, folder),
        files=files_of(sharded) if file is None else (str(file),),
    )


def _scan(path: Path) -> dict[str, _Stored]:
    if not path.is_file():
        raise broken(path, "a msgpack file", "no such file")
    places: dict[str, _Stored] = {}
    try:
        with path.open("rb") as file:
            scanner = Scanner(file, path)
            for name, stored in _arrays(scanner, path):
                if name in places:
                    raise scanner.broken("every tensor once", "it twice", name)
                places[name] = stored
    except OSError as error:
        raise unreadable(path, error) from error
    return places


def _arrays(scanner: Scanner, path: Path) -> Iterator[tuple[str, _Stored]]:
    end = scanner.end
    tree = scanner.value()
    if isinstance(tree, dict):
        if scanner.offset != end:
            found = f"{end - scanner.offset} bytes behind it"
            raise scanner.broken("one tree of arrays", found)
        yield from _of_tree(scanner, path, tree, ())
        return
    pair, after = tree, scanner.offset
    while True:
        name, packed = _pair(scanner, pair)
        scanner.move(packed)
        yield from _of_tree(scanner, path, scanner.value(), name)
        if after == end:
            return
        scanner.move(Span(after, end - after))
        pair, after = scanner.value(), scanner.offset


def _pair(scanner: Scanner, pair: Any) -> tuple[tuple[str, ...], Span]:
    if not isinstance(pair, list) or len(pair) != 2:
        found = f"{str(pair)[:40]} before byte {scanner.offset}"
        raise scanner.broken("a tree of arrays, or pairs of name and array", found)
    parts, packed = pair
    is_name = isinstance(parts, list) and all(isinstance(part, str) for part in parts)
    if not is_name or not isinstance(packed, Span):
        raise scanner.broken("a name's parts and packed bytes", str(pair)[:40])
    return tuple(parts), packed


def _of_tree(
    scanner: Scanner, path: Path, tree: Any, name: tuple[str, ...]
) -> Iterator[tuple[str, _Stored]]:
    """Every array in a tree that was scanned; maps that are one array included."""
    label = ".".join(name)
    if isinstance(tree, Span):
        yield label, _stored(scanner, path, tree, label)
    elif not isinstance(tree, dict):
        raise scanner.broken("an array", repr(tree)[:40], label)
    elif _CHUNKED in tree:
        yield label, _joined(scanner, path, tree, label)
    else:
        for key, below in tree.items():
            yield from _of_tree(scanner, path, below, (*name, str(key)))


def _stored(scanner: Scanner, path: Path, span: Span, label: str) -> _Stored:
    if span.code not in _ARRAYS:
        raise scanner.broken("an array as Flax packs it", f"code {span.code}", label)
    scanner.move(span)
    packed = scanner.value()
    shape, dtype, content = packed if _is_array(packed) else ([-1], "", span)
    size = math.prod(shape) * _ITEM_BYTES.get(dtype, -1)
    if min(shape, default=0) < 0 or content.size != size or content.end != span.end:
        expected = "a shape, a type and that many bytes"
        raise scanner.broken(expected, str(packed)[:80], label)
    return _Stored(file=path, dtype=dtype, shape=tuple(shape), pieces=(content,))


def _is_array(packed: Any) -> bool:
    if not isinstance(packed, list) or len(packed) != 3:
        return False
    shape, dtype, content = packed
    has_sizes = isinstance(shape, list) and all(type(size) is int for size in shape)
    return has_sizes and isinstance(dtype, str) and isinstance(content, Span)


def _joined(
    scanner: Scanner, path: Path, tree: Mapping[str, Any], label: str
) -> _Stored:
    """An array that was too long for one value of msgpack."""
    shape, chunks = _numbered(tree.get("shape")), _numbered(tree.get("chunks"))
    parts = [
        _stored(scanner, path, chunk, label)
        for chunk in chunks
        if isinstance(chunk, Span)
    ]
    dtypes = {part.dtype for part in parts}
    has_sizes = all(type(size) is int and size >= 0 for size in shape)
    lengths = [math.prod(part.shape) for part in parts]
    if len(dtypes) != 1 or not has_sizes or sum(lengths) != math.prod(shape):
        found = f"{len(parts)} chunks of {lengths} for {shape}"
        raise scanner.broken("chunks that make up one array", found[:80], label)
    pieces = tuple(piece for part in parts for piece in part.pieces)
    return _Stored(file=path, dtype=dtypes.pop(), shape=tuple(shape), pieces=pieces)


def _numbered(items: Any) -> list[Any]:
    """A tuple, which Flax writes as a map from "0", "1" and so on."""
    if not isinstance(items, dict):
        return []
    return [items.get(str(index)) for index in range(len(items))]


class MsgpackTensors:
    """A `TensorSource` that reads one array at a time, in the type it is stored in."""

    def __init__(self, places: Mapping[str, _Stored], folder: Path) -> None:
        self._places = places
        self._folder = folder

    def names(self) -> Iterable[str]:
        return self._places.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return place_of(self._places, name, self._folder).shape

    def read(self, name: str) -> HostArray:
        place = place_of(self._places, name, self._folder)
        if place.dtype not in _FLOAT_TYPES:
            expected = f"one of the types {', '.join(_FLOAT_TYPES)}"
            raise broken(place.file, expected, place.dtype, name)
        data = np.empty(sum(piece.size for piece in place.pieces), np.uint8)
        filled = 0
        try:
            with place.file.open("rb", buffering=0) as file:
                for piece in place.pieces:
                    file.seek(piece.start)
                    filled += _fill(file, data[filled : filled + piece.size])
        except OSError as error:
            raise unreadable(place.file, error) from error
        if filled != data.size:
            raise broken(place.file, f"{data.size} bytes", f"{filled}", name)
        values: HostArray = data.view(np.dtype(place.dtype)).reshape(place.shape)
        return values


def _fill(file: Any, target: Any) -> int:
    """Reads until the target is full or the file ends; one call may give less."""
    view, filled = memoryview(target), 0
    while filled < len(view):
        count = file.readinto(view[filled:])
        if not count:
            break
        filled += count
    return filled
