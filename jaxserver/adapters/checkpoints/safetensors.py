"""Reads a model's folder in the Hugging Face layout: a config.json and safetensors."""

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  # teaches numpy the name bfloat16
from safetensors import SafetensorError, safe_open

from jaxserver.ports.errors import BrokenCheckpoint
from jaxserver.ports.tensors import Checkpoint, HostArray

CONFIG = "config.json"
SINGLE_FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_FLOAT_TYPES = ("F64", "F32", "F16", "BF16")


def open_safetensors(folder: Path) -> Checkpoint:
    """Opens `model.safetensors`, or every shard that the index names.

    Raises:
        BrokenCheckpoint: A file is missing, cut short, or not what another says it is.
    """
    return Checkpoint(
        path=str(folder),
        layout="huggingface",
        config=_read_json(folder / CONFIG),
        tensors=SafetensorsTensors(_place_tensors(folder), folder),
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise _unreadable(path, error) from error
    except (ValueError, RecursionError) as error:
        raise _broken(path, "JSON", str(error)) from error
    if not isinstance(content, dict):
        raise _broken(path, "a JSON object", type(content).__name__)
    return content


def _broken(
    path: Path, expected: str, found: str, tensor: str | None = None
) -> BrokenCheckpoint:
    return BrokenCheckpoint(str(path), tensor, expected=expected, found=found)


def _unreadable(path: Path, error: OSError) -> BrokenCheckpoint:
    return _broken(path, "a readable file", error.strerror or str(error))


class _Shard:
    """One file; its tensors stay on the disk.

    It is opened anew for every tensor: what was read through a mapping counts as memory
    in use for as long as the mapping is there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise _broken(path, "a safetensors file", "no such file")
        with self.opened() as file:
            self.names: frozenset[str] = frozenset(file.keys())

    @contextlib.contextmanager
    def opened(self) -> Iterator[Any]:
        """The file, while the block lasts."""
        path = self.path
        try:
            with safe_open(path, framework="numpy") as file:
                yield file
        except SafetensorError as error:
            raise _broken(path, "a whole safetensors file", str(error)) from error
        except OSError as error:
            raise _unreadable(path, error) from error


def _place_tensors(folder: Path) -> dict[str, _Shard]:
    if (folder / SINGLE_FILE).exists():
        shard = _Shard(folder / SINGLE_FILE)
        return dict.fromkeys(sorted(shard.names), shard)
    index = folder / INDEX
    weight_map = _read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise _broken(index, "an object `weight_map`", repr(weight_map)[:40])
    for name, file in weight_map.items():
        _check_file_name(index, name, file)
    shards = {file: _Shard(folder / file) for file in sorted({*weight_map.values()})}
    for name, file in weight_map.items():
        if name not in shards[file].names:
            expected = f"it to be here, as {INDEX} says"
            raise _broken(folder / file, expected, "no such tensor", name)
    return {name: shards[file] for name, file in weight_map.items()}


def _check_file_name(index: Path, tensor: str, file: object) -> None:
    """Lets no index lead out of its folder."""
    is_name = isinstance(file, str) and not {*file} & {"/", "\\", "\0", ":"}
    if not is_name or file in ("", ".", ".."):
        raise _broken(index, "the name of a file beside it", repr(file)[:80], tensor)


class SafetensorsTensors:
    """A `TensorSource` that reads one tensor at a time, in the type it is stored in."""

    def __init__(self, places: Mapping[str, _Shard], folder: Path) -> None:
        self._places = places
        self._folder = folder

    def names(self) -> Iterable[str]:
        return self._places.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        with self._shard(name).opened() as file:
            return tuple(file.get_slice(name).get_shape())

    def read(self, name: str) -> HostArray:
        shard = self._shard(name)
        with shard.opened() as file:
            dtype = file.get_slice(name).get_dtype()
            if dtype not in _FLOAT_TYPES:
                expected = f"one of the types {', '.join(_FLOAT_TYPES)}"
                raise _broken(shard.path, expected, dtype, name)
            values: HostArray = file.get_tensor(name)
        return values

    def _shard(self, name: str) -> _Shard:
        if name not in self._places:
            expected = f"it among the {len(self._places)} tensors"
            raise _broken(self._folder, expected, "no such tensor", name)
        return self._places[name]
