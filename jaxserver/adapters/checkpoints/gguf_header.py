"""Reads the header of a GGUF file: its metadata, and the list of its tensors.

The reader of the `gguf` package makes an array of every token and every merge (3.5 s
for a vocabulary of 49,152) and believes every length that it finds. This one takes a
thirtieth of that and compares each length with the bytes left before it reads on.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import dataclasses
import os
import struct
from collections.abc import Mapping
from typing import Any, BinaryIO

from jaxserver.ports.errors import BrokenCheckpoint

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_MAX_HEADER_BYTES = 64 << 20  # the largest vocabularies in use need a quarter of it
_MAX_ARRAY_LENGTH = 1 << 22
_MAX_NAME_BYTES = 1024
_MAX_DIMENSIONS = 4
_LEAST_KEY_BYTES = 8 + 4 + 1
_LEAST_TENSOR_BYTES = 8 + 4 + 8 + 4 + 8
_SCALARS = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}
_TEXT, _ARRAY = 8, 9
_UINT32, _UINT64 = struct.Struct("<I"), struct.Struct("<Q")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TensorInfo:
    """What a header says of one tensor; nothing of it is checked against the file.

    Attributes:
        shape: Outermost axis first.
        type_id: The number of a block type.
        offset: First byte, counted from the header's `data_start`.
    """

    name: str
    shape: tuple[int, ...]
    type_id: int
    offset: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """Everything in front of the tensors' data.

    Attributes:
        alignment: Every tensor begins at a multiple of this many bytes.
        data_start: Where in the file the data begins.
    """

    metadata: Mapping[str, Any]
    tensors: tuple[TensorInfo, ...]
    alignment: int
    data_start: int


def read_header(file: BinaryIO, path: str) -> Header:
    """Reads from the beginning of an open file; `path` is for errors.

    Raises:
        BrokenCheckpoint: The header is cut short or says something it cannot say.
    """
    reader = _Reader(file, path)
    _check_magic(reader)
    num_tensors = reader.count("tensors", _LEAST_TENSOR_BYTES)
    num_keys = reader.count("metadata keys", _LEAST_KEY_BYTES)
    metadata: dict[str, Any] = {}
    for index in range(num_keys):
        key = reader.name(f"metadata key {index}")
        if key in metadata:
            raise reader.broken("every metadata key once", f"{key} twice")
        metadata[key] = reader.value(f"metadata {key}")
    tensors = tuple(_read_tensor(reader, index) for index in range(num_tensors))
    alignment = _alignment(reader, metadata)
    data_start = -(-reader.offset // alignment) * alignment
    return Header(
        metadata=metadata, tensors=tensors, alignment=alignment, data_start=data_start
    )


def _check_magic(reader: "_Reader") -> None:
    magic = reader.take("the magic number", 4)
    if magic != _MAGIC:
        raise reader.broken(f"a file that begins with {_MAGIC!r}", repr(magic))
    version = reader.number("the version", _UINT32)
    if version not in _VERSIONS:
        allowed = " or ".join(map(str, _VERSIONS))
        raise reader.broken(f"GGUF version {allowed}, little-endian", str(version))


def _alignment(reader: "_Reader", metadata: Mapping[str, Any]) -> int:
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or alignment < 1 or alignment.bit_count() != 1:
        found = repr(alignment)[:40]
        raise reader.broken("a power of two as general.alignment", found)
    return alignment


def _read_tensor(reader: "_Reader", index: int) -> TensorInfo:
    name = reader.name(f"the name of tensor {index}")
    what = f"the description of tensor {name}"
    num_dimensions = reader.number(what, _UINT32)
    if not 1 <= num_dimensions <= _MAX_DIMENSIONS:
        raise reader.broken(f"1 to {_MAX_DIMENSIONS} axes", str(num_dimensions), name)
    shape = [reader.number(what, _UINT64) for _ in range(num_dimensions)]
    if 0 in shape:
        raise reader.broken("axes of 1 or more", f"sizes {shape[::-1]}", name)
    return TensorInfo(
        name=name,
        shape=tuple(reversed(shape)),
        type_id=reader.number(what, _UINT32),
        offset=reader.number(what, _UINT64),
    )


class _Reader:
    """Goes through a header; `what` names what is read, for errors."""

    def __init__(self, file: BinaryIO, path: str) -> None:
        self.offset = 0
        self._file = file
        self._path = path
        self._end = min(os.fstat(file.fileno()).st_size, _MAX_HEADER_BYTES)

    def broken(
        self, expected: str, found: str, tensor: str | None = None
    ) -> BrokenCheckpoint:
        return BrokenCheckpoint(self._path, tensor, expected=expected, found=found)

    def take(self, what: str, num_bytes: int) -> bytes:
        left = self._end - self.offset
        data = self._file.read(num_bytes) if num_bytes <= left else b""
        if len(data) != num_bytes:
            found = f"{left} of the header's at most {self._end}"
            raise self.broken(
                f"{num_bytes} bytes for {what} at byte {self.offset}", found
            )
        self.offset += num_bytes
        return data

    def number(self, what: str, form: struct.Struct) -> Any:
        return form.unpack(self.take(what, form.size))[0]

    def count(self, what: str, least_bytes: int) -> int:
        """A number of things that take at least so many bytes each."""
        count: int = self.number(f"the number of {what}", _UINT64)
        room = (self._end - self.offset) // least_bytes
        if count > room:
            expected = f"a header with room for its {count} {what}"
            raise self.broken(expected, f"room for {room}")
        return count

    def name(self, what: str) -> str:
        name = self.text(what, _MAX_NAME_BYTES)
        if not name:
            raise self.broken(f"{what}", "an empty name")
        return name

    def text(self, what: str, max_bytes: int = _MAX_HEADER_BYTES) -> str:
        length: int = self.number(what, _UINT64)
        if length > max_bytes:
            raise self.broken(f"at most {max_bytes} bytes for {what}", str(length))
        try:
            return self.take(what, length).decode()
        except UnicodeDecodeError as error:
            raise self.broken(f"UTF-8 for {what}", str(error)) from error

    def value(self, what: str) -> Any:
        kind = self.number(what, _UINT32)
        if kind == _ARRAY:
            return self._array(what)
        if kind == _TEXT:
            return self.text(what)
        return self._scalars(what, kind, 1)[0]

    def _array(self, what: str) -> list[Any]:
        kind = self.number(what, _UINT32)
        count = self.count(f"entries of {what}", 8 if kind == _TEXT else 1)
        if count > _MAX_ARRAY_LENGTH:
            expected = f"at most {_MAX_ARRAY_LENGTH} entries of {what}"
            raise self.broken(expected, str(count))
        if kind == _TEXT:
            return [self.text(what) for _ in range(count)]
        return self._scalars(what, kind, count)

    def _scalars(self, what: str, kind: int, count: int) -> list[Any]:
        if kind not in _SCALARS:
            allowed = ", ".join(map(str, sorted({*_SCALARS, _TEXT})))
            raise self.broken(f"a type for {what} of {allowed}", f"type {kind}")
        form = struct.Struct(f"<{count}{_SCALARS[kind]}")
        return list(form.unpack(self.take(what, form.size)))
