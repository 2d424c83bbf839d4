"""Reads a model's folder in the Hugging Face layout: a config.json and safetensors."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  # teaches numpy the name bfloat16
from safetensors import SafetensorError, safe_open

from jaxserver.adapters.checkpoints.folder import (
    CONFIG,
    broken,
    files_of,
    of_shards,
    place_of,
    read_json,
    unreadable,
)
from jaxserver.ports.tensors import Checkpoint, HostArray

SINGLE_FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_FLOAT_TYPES = ("F64", "F32", "F16", "BF16")


def open_safetensors(folder: Path) -> Checkpoint:
    """Opens `model.safetensors`, or every shard that the index names.

    The names are Flax's where the file says so, else PyTorch's.

    Raises:
        BrokenCheckpoint: A file is missing, cut short, or not what another says it is.
    """
    single = folder / SINGLE_FILE
    is_whole = single.exists()
    places = _read_shard(single) if is_whole else of_shards(folder / INDEX, _read_shard)
    is_flax = any(shard.is_flax for shard in places.values())
    return Checkpoint(
        path=str(folder),
        layout="flax" if is_flax else "huggingface",
        config=read_json(folder / CONFIG),
        tensors=SafetensorsTensors(places, folder),
        files=(str(single),) if is_whole else files_of(folder / INDEX),
    )


class _Shard:
    """One file; its tensors stay on the disk.

    It is opened anew for every tensor: what was read through a mapping counts as memory
    in use for as long as the mapping is there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise broken(path, "a safetensors file", "no such file")
        with self.opened() as file:
            self.names: frozenset[str] = frozenset(file.keys())
            self.is_flax = (file.metadata() or {}).get("format") == "flax"

    @contextlib.contextmanager
    def opened(self) -> Iterator[Any]:
        """The file, while the block lasts."""
        path = self.path
        try:
            with safe_open(path, framework="numpy") as file:
                yield file
        except SafetensorError as error:
            raise broken(path, "a whole safetensors file", str(error)) from error
        except OSError as error:
            raise unreadable(path, error) from error


def _read_shard(path: Path) -> dict[str, _Shard]:
    shard = _Shard(path)
    return dict.fromkeys(sorted(shard.names), shard)


class SafetensorsTensors:
    """A `TensorSource` that reads one tensor at a time, in the type it is stored in."""

    def __init__(self, places: Mapping[str, _Shard], folder: Path) -> None:
        self._places = places
        self._folder = folder

    def names(self) -> Iterable[str]:
        return self._places.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        with place_of(self._places, name, self._folder).opened() as file:
            return tuple(file.get_slice(name).get_shape())

    def read(self, name: str) -> HostArray:
        shard = place_of(self._places, name, self._folder)
        with shard.opened() as file:
            dtype = file.get_slice(name).get_dtype()
            if dtype not in _FLOAT_TYPES:
                expected = f"one of the types {', '.join(_FLOAT_TYPES)}"
                raise broken(shard.path, expected, dtype, name)
            values: HostArray = file.get_tensor(name)
        return values
