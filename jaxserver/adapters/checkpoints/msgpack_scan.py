"""Goes through a msgpack file without reading what is long in it.

The `msgpack` package reads a value to know where the next one begins, so a file of
weights would pass through memory as a whole. This reads the headers, remembers where
the contents of arrays lie, and compares each length with the bytes that are left.

The format: https://github.com/msgpack/msgpack/blob/master/spec.md
"""

import os
import struct
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from jaxserver.adapters.checkpoints.folder import broken
from jaxserver.ports.errors import BrokenCheckpoint

_MAX_TEXT_BYTES = 4096
_MAX_VALUES = 1 << 22
_MAX_DEPTH = 64
_FIXED = (  # first byte from, what it is, how many low bits count
    (0xE0, "number", 5),
    (0xA0, "text", 5),
    (0x90, "list", 4),
    (0x80, "map", 4),
    (0x00, "number", 7),
)
_SIZED = {  # first byte: what it is, and how many bytes say its length
    **{0xC4 + n: ("bytes", 1 << n) for n in range(3)},
    **{0xC7 + n: ("extension", 1 << n) for n in range(3)},
    **{0xD9 + n: ("text", 1 << n) for n in range(3)},
    **{0xDC + n: ("list", 2 << n) for n in range(2)},
    **{0xDE + n: ("map", 2 << n) for n in range(2)},
}
_FORMS = dict(enumerate((">f", ">d", *(f">{form}" for form in "BHIQbhiq")), 0xCA))
"""First byte: a number's form."""
_WORDS = {0xC0: None, 0xC2: False, 0xC3: True}
_FIXED_EXTENSIONS = {0xD4 + n: 1 << n for n in range(5)}


class Span(NamedTuple):
    """Bytes that were passed over.

    Attributes:
        code: What kind of extension they are; None for plain bytes.
    """

    start: int
    size: int
    code: int | None = None

    @property
    def end(self) -> int:
        return self.start + self.size


class Scanner:
    """Reads an open file, value by value; `path` is for errors."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self.offset = 0
        self.end = os.fstat(file.fileno()).st_size
        self._file = file
        self._path = path
        self._values = 0

    def move(self, span: Span) -> None:
        """Goes on with what is inside of these bytes."""
        self._file.seek(span.start)
        self.offset, self.end = span.start, span.end

    def value(self, depth: int = 0) -> Any:
        """The next value: maps as `dict`, contents and extensions as `Span`."""
        self._values += 1
        if depth > _MAX_DEPTH or self._values > _MAX_VALUES:
            raise self.broken("a tree of weights", "values without end")
        kind, size = self._header()
        if kind == "list":
            return [self.value(depth + 1) for _ in range(self._count(size, 1))]
        if kind == "map":
            return self._map(self._count(size, 2), depth)
        if kind == "text":
            return self._text(size)
        if kind == "bytes":
            return self._pass_over(size)
        if kind == "extension":
            code = self._number(">b")
            return self._pass_over(size, code)
        return size

    def broken(
        self, expected: str, found: str, tensor: str | None = None
    ) -> BrokenCheckpoint:
        return broken(self._path, expected, found, tensor)

    def _header(self) -> tuple[str, Any]:
        """What comes, and its length; a number or a word is there already."""
        byte = self._take(1)[0]
        if byte in _SIZED:
            kind, num_bytes = _SIZED[byte]
            return kind, int.from_bytes(self._take(num_bytes), "big")
        if byte in _FIXED_EXTENSIONS:
            return "extension", _FIXED_EXTENSIONS[byte]
        if byte in _FORMS:
            return "number", self._number(_FORMS[byte])
        if byte in _WORDS:
            return "word", _WORDS[byte]
        if byte == 0xC1:
            raise self.broken("msgpack", f"the byte c1 at byte {self.offset - 1}")
        first, kind, bits = next(fixed for fixed in _FIXED if byte >= fixed[0])
        low = (byte - first) & ((1 << bits) - 1)
        return kind, low - 32 if first == 0xE0 else low

    def _map(self, count: int, depth: int) -> dict[Any, Any]:
        found: dict[Any, Any] = {}
        for _ in range(count):
            key = self.value(depth + 1)
            if not isinstance(key, str | int) or key in found:
                raise self.broken("names, each once, in a map", repr(key)[:40])
            found[key] = self.value(depth + 1)
        return found

    def _count(self, count: int, least_bytes: int) -> int:
        room = (self.end - self.offset) // least_bytes
        if count > room:
            expected = f"room for {count} values at byte {self.offset}"
            raise self.broken(expected, f"room for {room}")
        return count

    def _number(self, form: str) -> Any:
        return struct.unpack(form, self._take(struct.calcsize(form)))[0]

    def _text(self, size: int) -> str:
        if size > _MAX_TEXT_BYTES:
            raise self.broken(f"names of at most {_MAX_TEXT_BYTES} bytes", str(size))
        try:
            return self._take(size).decode()
        except UnicodeDecodeError as error:
            raise self.broken("names in UTF-8", str(error)) from error

    def _take(self, size: int) -> bytes:
        start = self._pass_over(size, seek=False).start
        data = self._file.read(size)
        if len(data) != size:
            raise self.broken(f"{size} bytes from {start} on", f"{len(data)}")
        return data

    def _pass_over(self, size: int, code: int | None = None, seek: bool = True) -> Span:
        span = Span(self.offset, size, code)
        if span.end > self.end:
            expected = f"{size} bytes from {span.start} on"
            raise self.broken(expected, f"{self.end - span.start}")
        if seek:
            self._file.seek(span.end)
        self.offset = span.end
        return span
