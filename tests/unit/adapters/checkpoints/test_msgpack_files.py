"""Flax's msgpack files, in each of the three forms that they come in."""

import os
import struct
import tracemalloc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.serialization
import ml_dtypes
import msgpack
import numpy as np
import pytest
from flax.serialization import to_bytes

from jaxserver.adapters.checkpoints.locate import open_checkpoint
from jaxserver.ports.errors import BrokenCheckpoint
from tests.unit.adapters.checkpoints.files import write_json

VALUES = np.arange(6, dtype=np.float32).reshape(2, 3)
TREE = {"model": {"0": {"kernel": VALUES}, "norm": {"scale": VALUES[0] + 1}}}
NAMES = {"model.0.kernel", "model.norm.scale"}
WHOLE, STREAM = "flax_model.msgpack", "streaming_params"


def pair(*name: str, values: Any = VALUES) -> bytes:
    packed: bytes = msgpack.packb((name, to_bytes(values)))
    return packed


def write(folder: Path, content: bytes, name: str = WHOLE) -> Path:
    folder.mkdir(exist_ok=True)
    write_json(folder / "config.json", {"model_type": "gpt2"})
    (folder / name).write_bytes(content)
    return folder


def read_all(folder: Path) -> Mapping[str, np.ndarray]:
    tensors = open_checkpoint(folder).tensors
    found = {name: np.asarray(tensors.read(name)) for name in tensors.names()}
    assert {name: tensors.shape(name) for name in found} == {
        name: values.shape for name, values in found.items()
    }
    return found


def write_shards(folder: Path) -> Path:
    shards = {"a.msgpack": {"model": {"0": TREE["model"]["0"]}}}
    shards["b.msgpack"] = {"model": {"norm": TREE["model"]["norm"]}}
    for name, tree in shards.items():
        write(folder, to_bytes(tree), name)
    places = {"model/0/kernel": "a.msgpack", "model/norm/scale": "b.msgpack"}
    write_json(folder / f"{WHOLE}.index.json", {"weight_map": places})
    return folder


def write_stream(folder: Path) -> Path:
    first = pair("model", "0", "kernel")
    return write(
        folder, first + pair("model", "norm", "scale", values=VALUES[0] + 1), STREAM
    )


def write_whole(folder: Path) -> Path:
    return write(folder, to_bytes(TREE))


@pytest.mark.parametrize("form", [write_whole, write_shards, write_stream])
def test_a_file_of_each_form_gives_its_arrays_by_name(
    form: Any, tmp_path: Path
) -> None:
    found = read_all(form(tmp_path))
    assert found.keys() == NAMES
    np.testing.assert_array_equal(found["model.0.kernel"], VALUES)
    np.testing.assert_array_equal(found["model.norm.scale"], VALUES[0] + 1)
    assert open_checkpoint(tmp_path).layout == "flax"
    assert open_checkpoint(tmp_path).config == {"model_type": "gpt2"}


@pytest.mark.parametrize("name", [WHOLE, "other.msgpack", STREAM, f"{STREAM}_900"])
def test_what_a_file_holds_and_not_its_name_says_which_form_it_is(
    name: str, tmp_path: Path
) -> None:
    for form in (to_bytes({"a": {"b": VALUES}}), pair("a", "b")):
        assert read_all(write(tmp_path, form, name)).keys() == {"a.b"}


@pytest.mark.parametrize(
    "dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16]
)
def test_an_array_comes_in_the_type_it_was_written_in(
    dtype: Any, tmp_path: Path
) -> None:
    (found,) = read_all(write(tmp_path, to_bytes({"a": VALUES.astype(dtype)}))).values()
    assert found.dtype == dtype
    np.testing.assert_array_equal(found.astype(np.float32), VALUES)


def test_arrays_without_axes_and_without_elements_are_arrays(tmp_path: Path) -> None:
    tree = {"a": np.float32(3), "b": np.array(4, np.float32), "c": VALUES[:0]}
    found = read_all(write(tmp_path, to_bytes(tree)))
    assert [values.shape for values in found.values()] == [(), (), (0, 3)]
    assert [float(found["a"]), float(found["b"])] == [3, 4]


@pytest.mark.parametrize("form", ["tree", "pair"])
def test_an_array_in_chunks_is_put_together(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flax.serialization, "MAX_CHUNK_SIZE", 16)
    content = to_bytes({"a": VALUES}) if form == "tree" else pair("a")
    assert b"__msgpack_chunked_array__" in content
    found = read_all(write(tmp_path, content))
    np.testing.assert_array_equal(found["a"], VALUES)


def test_a_root_that_all_names_have_in_common_is_left_out(tmp_path: Path) -> None:
    content = to_bytes({"params": {"params": {"a": VALUES, "b": VALUES}}})
    assert read_all(write(tmp_path, content)).keys() == {"a", "b"}
    content = to_bytes({"params": {"a": VALUES}, "more": VALUES})
    assert read_all(write(tmp_path, content)).keys() == {"params.a", "more"}


def test_a_large_file_is_gone_through_without_being_read(tmp_path: Path) -> None:
    """Two arrays of a gibibyte, which are holes in the file."""
    size = 2**30
    inner = b"\x93" + b"\x91" + b"\xce" + struct.pack(">I", size // 4) + b"\xa7float32"
    inner += b"\xc6" + struct.pack(">I", size)
    head = b"\xc9" + struct.pack(">I", len(inner) + size) + b"\x01" + inner
    write(tmp_path, b"\x82", WHOLE)
    with (tmp_path / WHOLE).open("r+b") as file:
        file.seek(0, os.SEEK_END)
        for name in (b"a", b"b"):
            file.write(b"\xa1" + name + head)
            file.truncate(file.tell() + size)
            file.seek(0, os.SEEK_END)
    tracemalloc.start()
    try:
        tensors = open_checkpoint(tmp_path).tensors
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert {name: tensors.shape(name) for name in tensors.names()} == dict.fromkeys(
        "ab", (size // 4,)
    )
    assert peak_bytes < 2**22


def test_a_file_cut_anywhere_is_broken_and_named(tmp_path: Path) -> None:
    for whole in (to_bytes(TREE), pair("a") + pair("b")):
        for length in range(len(whole)):
            file = write(tmp_path, whole[:length]) / WHOLE
            if length == len(pair("a")) and whole.startswith(pair("a")):
                continue  # a stream that ends between two pairs is a shorter stream
            with pytest.raises(BrokenCheckpoint) as caught:
                open_checkpoint(tmp_path)
            assert caught.value.file == str(file)


def test_an_array_that_shrank_since_is_named(tmp_path: Path) -> None:
    tensors = open_checkpoint(write_whole(tmp_path)).tensors
    os.truncate(tmp_path / WHOLE, 40)
    with pytest.raises(BrokenCheckpoint, match="expected 12 bytes, found 0") as caught:
        tensors.read("model.norm.scale")
    assert caught.value.tensor == "model.norm.scale"
    (tmp_path / WHOLE).unlink()
    with pytest.raises(BrokenCheckpoint, match="a readable file, found No such file"):
        tensors.read("model.norm.scale")


EXT = msgpack.ExtType
BROKEN = [
    (b"", "1 bytes from 0 on"),
    (b"version https://git-lfs", "a tree of arrays, or pairs of name and array"),
    (msgpack.packb([1, 2, 3]), "a tree of arrays, or pairs"),
    (msgpack.packb(["a", b"b"]), "a name's parts and packed bytes"),
    (msgpack.packb([["a"], "b"]), "a name's parts and packed bytes"),
    (pair("a") + pair("a"), "every tensor once, found it twice"),
    (to_bytes({"a": VALUES}) + b"\xc0", "one tree of arrays, found 1 bytes behind it"),
    (msgpack.packb({"a": 3}), "tensor a: expected an array, found 3"),
    (msgpack.packb({"a": EXT(2, b"1")}), "tensor a: expected an array as Flax packs"),
    (msgpack.packb({"a": EXT(1, b"\x01")}), "tensor a: expected a shape, a type"),
    (
        msgpack.packb({"a": EXT(1, msgpack.packb(([2], "float32", bytes(4))))}),
        "tensor a: expected a shape, a type and that many bytes",
    ),
    (
        msgpack.packb({"a": EXT(1, msgpack.packb(([1], "object", bytes(8))))}),
        "tensor a: expected a shape, a type and that many bytes",
    ),
    (msgpack.packb({"a": {"__msgpack_chunked_array__": True}}), "chunks that make up"),
    (b"\x82\xa1a\xc0\xa1a\xc0", "names, each once"),
    (b"\x81\xa1\xff\xc0", "names in UTF-8"),
    (b"\xdb" + b"\xff" * 4, "names of at most 4096 bytes"),
    (b"\xdd" + b"\xff" * 4, "room for 4294967295 values"),
    (b"\x91" * 100 + b"\xc0", "a tree of weights, found values without end"),
    (b"\xc1", "the byte c1 at byte 0"),
]


@pytest.mark.parametrize(("content", "message"), BROKEN)
def test_what_no_library_writes_is_named(
    content: bytes, message: str, tmp_path: Path
) -> None:
    file = write(tmp_path, content) / WHOLE
    with pytest.raises(BrokenCheckpoint, match=message) as caught:
        open_checkpoint(tmp_path)
    assert caught.value.file == str(file)


def test_numbers_of_every_kind_are_passed_over_to_the_next(tmp_path: Path) -> None:
    numbers: list[object] = [
        0,
        -1,
        127,
        -32,
        200,
        -100,
        2**15,
        -(2**15),
        2**31,
        -(2**31),
    ]
    numbers += [2**63, -(2**63), 0.5, None, True, False]
    with pytest.raises(BrokenCheckpoint, match="pairs of name and array") as caught:
        open_checkpoint(write(tmp_path, msgpack.packb(numbers)))
    assert caught.value.found.startswith(str(numbers)[:40])


def test_a_type_that_is_no_plain_float_is_named_when_it_is_read(tmp_path: Path) -> None:
    tensors = open_checkpoint(write(tmp_path, to_bytes({"a": np.arange(3)}))).tensors
    assert tensors.shape("a") == (3,)
    with pytest.raises(BrokenCheckpoint, match=r"one of the types .* found int64") as e:
        tensors.read("a")
    assert e.value.tensor == "a"


def test_an_unknown_tensor_is_named(tmp_path: Path) -> None:
    tensors = open_checkpoint(write_whole(tmp_path)).tensors
    for ask in (tensors.read, tensors.shape):
        with pytest.raises(BrokenCheckpoint, match="tensor c: expected it among the 2"):
            ask("c")


def test_a_shard_that_is_missing_or_lacks_a_tensor_is_named(tmp_path: Path) -> None:
    folder = write_shards(tmp_path)
    (folder / "b.msgpack").write_bytes(to_bytes({"other": VALUES}))
    with pytest.raises(
        BrokenCheckpoint, match=r"model\.norm\.scale: expected it to be"
    ):
        open_checkpoint(folder)
    (folder / "b.msgpack").unlink()
    with pytest.raises(BrokenCheckpoint, match="found no such file") as caught:
        open_checkpoint(folder)
    assert caught.value.file == str(folder / "b.msgpack")


def test_an_index_cannot_lead_out_of_its_folder(tmp_path: Path) -> None:
    folder = write_shards(tmp_path)
    index = {"weight_map": {"a": "../a.msgpack"}}
    write_json(folder / f"{WHOLE}.index.json", index)
    with pytest.raises(BrokenCheckpoint, match="the name of a file beside it"):
        open_checkpoint(folder)
