"""Ways to spoil a file: its bytes, its JSON, or the header before its data."""

import copy
import json
import struct
from typing import Any

from hypothesis import strategies as st

LENGTHS = (0, 1, 2**16, 2**31, 2**32 - 1, 2**40, 2**62, 2**63, 2**64 - 1)
JUNK_BYTES = st.binary(min_size=1, max_size=8) | st.sampled_from(
    [struct.pack("<Q", n) for n in LENGTHS] + [struct.pack(">Q", n) for n in LENGTHS]
)
PLACES = (
    *("../x", "../../x.safetensors", "/tmp/x", "a/../../x", "x\0y", "..", "~/x"),
    *("\ud800", "x" * 1000),
)
"""Names that lead out of a folder, or nowhere."""
DEEP = 3_000


class Content(bytes):
    """What is in a file, which is too long to be shown."""

    def __repr__(self) -> str:
        return f"<{len(self)} bytes>"


class Files(dict[str, Content]):
    """The files of a folder, by name."""

    def __repr__(self) -> str:
        return f"<{', '.join(self)}>"


class Said(dict[str, Any]):
    """What a file says, by key."""

    def __repr__(self) -> str:
        return f"<{len(self)} keys>"


def nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


JUNK_VALUES = st.one_of(
    st.none() | st.booleans() | st.text(max_size=8),
    st.sampled_from((-1, 0, 1, 2, 3, 7, 2**31, 2**53, 2**64, 10**30)),
    st.sampled_from((0.0, -0.5, 1e-320, 1e308, float("inf"), float("nan"))),
    st.sampled_from(PLACES),
    st.sampled_from(([], {}, [[]], {"a": {}}, [1, 2], ["a"], {"content": 5})),
    st.sampled_from(("x" * 100_000, "9" * 5_000)),
    st.just("nested"),
)
"""`nested` is written as lists in lists in lists."""


@st.composite
def spoiled_bytes(draw: st.DrawFn, whole: Content) -> Content:
    """Bits turned, bytes replaced, put in or taken out, and perhaps the end cut off."""
    content = bytearray(whole)
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(content)))
        end = start + draw(st.sampled_from((0, 1, 4, 8)))
        content[start:end] = draw(JUNK_BYTES)
    for _ in range(draw(st.integers(0, 3))):
        content[draw(st.integers(0, len(content) - 1))] ^= 1 << draw(st.integers(0, 7))
    end = len(content)
    return Content(content[: draw(st.integers(0, end)) if draw(st.booleans()) else end])


@st.composite
def spoiled_value(draw: st.DrawFn, whole: Said) -> Any:
    """Some values replaced, left out, renamed or said twice."""
    value: Any = copy.deepcopy(whole)
    for _ in range(draw(st.integers(1, 3))):
        value = _spoil(draw, value)
    return value


def _spoil(draw: st.DrawFn, value: Any) -> Any:
    """Goes down to a random place and spoils what is there."""
    inside = isinstance(value, dict | list) and len(value) > 0
    if not inside or draw(st.integers(0, 4)) == 0:
        return copy.deepcopy(draw(JUNK_VALUES))
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = draw(st.sampled_from(keys))
    match draw(st.sampled_from(("deeper", "deeper", "deeper", "drop", "rename"))):
        case "deeper":
            value[key] = _spoil(draw, value[key])
        case "drop":
            del value[key]
        case _ if isinstance(value, dict):
            value[draw(st.sampled_from(PLACES) | st.text(max_size=5))] = value.pop(key)
        case _:
            value.append(value[key])
    return value


@st.composite
def spoiled_json(draw: st.DrawFn, whole: Content) -> Content:
    """JSON that says something else, or something twice; or that is none any more."""
    if draw(st.integers(0, 3)) == 0:
        return draw(spoiled_bytes(whole))
    value = draw(spoiled_value(Said(json.loads(whole))))
    text = json.dumps(value).replace('"nested"', "[" * DEEP + "]" * DEEP)
    if isinstance(value, dict) and value and draw(st.booleans()):
        key = json.dumps(draw(st.sampled_from(list(value))))
        twice = f"{{{key}: {json.dumps(draw(JUNK_VALUES))}, "
        text = text.replace("{", twice, 1)
    return Content(text.encode())


@st.composite
def spoiled_safetensors(draw: st.DrawFn, whole: Content) -> Content:
    """The header's JSON spoiled and its length put right, or any of the bytes."""
    if draw(st.booleans()):
        return draw(spoiled_bytes(whole))
    (length,) = struct.unpack("<Q", whole[:8])
    header = draw(spoiled_json(Content(whole[8 : 8 + length])))
    length_bytes = struct.pack("<Q", len(header))
    return Content(length_bytes + header + whole[8 + length :])


@st.composite
def spoiled_folder(draw: st.DrawFn, whole: Files, *names: str) -> Files:
    """The folder with one of its files spoiled, or one of those that are named."""
    name = draw(st.sampled_from(names or sorted(whole)))
    by_kind = {"json": spoiled_json, "safetensors": spoiled_safetensors}
    spoil = by_kind.get(name.rpartition(".")[2], spoiled_bytes)
    return Files({**whole, name: draw(spoil(whole[name]))})
