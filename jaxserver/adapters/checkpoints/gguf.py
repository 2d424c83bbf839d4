"""Reads GGUF files, llama.cpp's way to put a whole model into one file."""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

from jaxserver.adapters.checkpoints.gguf_header import (
    Header,
    TensorInfo,
    read_header,
)
from jaxserver.ports.errors import BrokenCheckpoint, UnsupportedModel
from jaxserver.ports.tensors import Checkpoint, HostArray

ROWS_TOGETHER = 8
"""More make each step of dequantising fall out of the processor's caches."""


def open_gguf(path: Path) -> Checkpoint:
    """Reads a file's header and checks it against the file's size.

    Raises:
        BrokenCheckpoint: The file is not GGUF, is cut short or contradicts itself.
        UnsupportedModel: The file is one part of several.
    """
    if not path.is_file():
        raise BrokenCheckpoint(
            str(path), None, expected="a GGUF file", found="no such file"
        )
    try:
        with path.open("rb") as file:
            header = read_header(file, str(path))
            size = path.stat().st_size
    except OSError as error:
        raise _unreadable(path, error) from error
    if header.metadata.get("split.count", 1) != 1:
        supported = "GGUF in one file (llama-gguf-split --merge joins the parts)"
        raise UnsupportedModel(f"{path}, one part of several,", supported)
    return Checkpoint(
        path=str(path),
        layout="gguf",
        config=header.metadata,
        tensors=GGUFTensors(path, _place_tensors(path, header, size)),
        files=(str(path),),
    )


def _unreadable(path: Path, error: OSError) -> BrokenCheckpoint:
    found = error.strerror or str(error)
    return BrokenCheckpoint(str(path), None, expected="a readable file", found=found)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Where a tensor's bytes are, and what they mean."""

    block_type: GGMLQuantizationType
    shape: tuple[int, ...]
    start: int
    row_bytes: int

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape[:-1]) * self.row_bytes


def _place_tensors(path: Path, header: Header, size: int) -> dict[str, _Place]:
    """Checks that the tensors fill the file without a gap, as llama.cpp does."""
    places: dict[str, _Place] = {}
    offset = 0
    for info in header.tensors:
        if info.name in places:
            raise _broken(path, info, "every tensor once", "it twice")
        if info.offset != offset:
            expected = f"its data at byte {offset}, after the tensor before it"
            raise _broken(path, info, expected, str(info.offset))
        place = _place(path, header, info)
        if place.start + place.num_bytes > size:
            expected = f"{place.num_bytes} bytes from {place.start} on"
            raise _broken(path, info, expected, f"a file of {size} bytes")
        places[info.name] = place
        end = offset + place.num_bytes
        offset = -(-end // header.alignment) * header.alignment
    return places


def _place(path: Path, header: Header, info: TensorInfo) -> _Place:
    try:
        block_type = GGMLQuantizationType(info.type_id)
        block_size, block_bytes = GGML_QUANT_SIZES[block_type]
    except (ValueError, KeyError) as error:
        found = f"type {info.type_id}"
        raise _broken(path, info, "a known block type", found) from error
    if info.shape[-1] % block_size:
        expected = f"rows of whole {block_type.name} blocks of {block_size}"
        raise _broken(path, info, expected, f"rows of {info.shape[-1]}")
    return _Place(
        block_type=block_type,
        shape=info.shape,
        start=header.data_start + info.offset,
        row_bytes=info.shape[-1] // block_size * block_bytes,
    )


def _broken(
    path: Path, info: TensorInfo, expected: str, found: str
) -> BrokenCheckpoint:
    return BrokenCheckpoint(str(path), info.name, expected=expected, found=found)


def _dequantize(rows: np.ndarray, place: _Place) -> HostArray:
    """Its blocks stand alone; gguf takes 16 rows at a time, so they are made longer."""
    longer = math.gcd(math.prod(rows.shape[:-1]), ROWS_TOGETHER)
    made_longer = rows.reshape(-1, longer * place.row_bytes)
    values: HostArray = dequantize(made_longer, place.block_type).reshape(place.shape)
    return values


class GGUFTensors:
    """A `TensorSource` that reads and dequantises one tensor at a time, to float32.

    It reads instead of mapping the file into memory, so that a file that shrinks
    meanwhile is an error and not the end of the process.
    """

    def __init__(self, path: Path, places: Mapping[str, _Place]) -> None:
        self._path = path
        self._places = places

    def names(self) -> Iterable[str]:
        return self._places.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return self._place_of(name).shape

    def read(self, name: str) -> HostArray:
        place = self._place_of(name)
        rows = self._read_bytes(name, place).reshape(*place.shape[:-1], place.row_bytes)
        try:
            # Broken weights may be infinite; that is for who computes with them to say.
            with np.errstate(over="ignore", invalid="ignore"):
                values = _dequantize(rows, place)
        except NotImplementedError as error:
            raise BrokenCheckpoint(
                str(self._path),
                name,
                expected="a block type that the gguf package dequantises",
                found=place.block_type.name,
            ) from error
        return values

    def _place_of(self, name: str) -> _Place:
        if name not in self._places:
            expected = f"it among the {len(self._places)} tensors"
            raise BrokenCheckpoint(
                str(self._path), name, expected=expected, found="no such tensor"
            )
        return self._places[name]

    def _read_bytes(self, name: str, place: _Place) -> np.ndarray:
        try:
            data = np.fromfile(
                self._path, np.uint8, count=place.num_bytes, offset=place.start
            )
        except OSError as error:
            raise _unreadable(self._path, error) from error
        if data.size != place.num_bytes:
            expected = f"{place.num_bytes} bytes from {place.start} on"
            raise BrokenCheckpoint(
                str(self._path), name, expected=expected, found=f"{data.size} bytes"
            )
        return data
