import itertools
import struct
import tracemalloc
from pathlib import Path

import gguf
import numpy as np
import pytest

from jaxserver.adapters.checkpoints.gguf import open_gguf
from jaxserver.adapters.checkpoints.gguf_header import read_header
from jaxserver.ports.errors import BrokenCheckpoint, UnsupportedModel
from tests.unit.adapters.checkpoints.files import GGUF_TENSORS, write_gguf

COUNT = 2**60
EMPTY_KEY = struct.pack("<Q", 1) + b"k"


def header(*, version: int = 3, tensors: int = 0, keys: int = 0) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, keys)


def tensor(
    name: str, shape: tuple[int, ...], type_id: int = 0, offset: int = 0
) -> bytes:
    dimensions = struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
    info = struct.pack("<IQ", type_id, offset)
    return struct.pack("<Q", len(name)) + name.encode() + dimensions + info


def file_of(path: Path, *parts: bytes, data: bytes = bytes(4096)) -> Path:
    start = b"".join(parts)
    path.write_bytes(start + bytes(-len(start) % 32) + data)
    return path


def is_dequantised(block_type: gguf.GGMLQuantizationType) -> bool:
    row = np.zeros((1, gguf.GGML_QUANT_SIZES[block_type][1]), np.uint8)
    try:
        gguf.quants.dequantize(row, block_type)
    except NotImplementedError:
        return False
    return True


BLOCK_TYPES = list(gguf.GGMLQuantizationType)
DEQUANTISED = [t for t in BLOCK_TYPES if is_dequantised(t)]
NOT_DEQUANTISED = [t for t in BLOCK_TYPES if not is_dequantised(t)]


def random_rows(block_type: gguf.GGMLQuantizationType, rows: int) -> np.ndarray:
    row_bytes = 3 * gguf.GGML_QUANT_SIZES[block_type][1]
    rng = np.random.default_rng(block_type.value)
    return rng.integers(0, 256, (rows, row_bytes), np.uint8)


@pytest.mark.parametrize("block_type", DEQUANTISED, ids=lambda t: t.name)
def test_a_tensor_is_what_gguf_dequantises(
    block_type: gguf.GGMLQuantizationType, tmp_path: Path
) -> None:
    first, second = random_rows(block_type, 5), random_rows(block_type, 2)
    path = write_gguf(tmp_path / "m.gguf", {"a": first, "b": second}, block_type)

    tensors = open_gguf(path).tensors

    block_size = gguf.GGML_QUANT_SIZES[block_type][0]
    for name, rows in (("a", first), ("b", second)):
        with np.errstate(all="ignore"):
            expected = gguf.quants.dequantize(rows, block_type)
        values = np.asarray(tensors.read(name))
        np.testing.assert_array_equal(values, expected)
        assert values.dtype == np.float32
        assert values.shape == tensors.shape(name) == (len(rows), 3 * block_size)


def test_the_block_types_of_published_models_are_all_dequantised() -> None:
    names = {block_type.name for block_type in DEQUANTISED}
    assert names >= {"F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"}
    assert names >= {"Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "MXFP4"}


@pytest.mark.parametrize("block_type", NOT_DEQUANTISED, ids=lambda t: t.name)
def test_a_block_type_that_gguf_does_not_dequantise_is_named(
    block_type: gguf.GGMLQuantizationType, tmp_path: Path
) -> None:
    shape = (1, gguf.GGML_QUANT_SIZES[block_type][0])
    info = tensor("a", shape, block_type.value)
    path = file_of(tmp_path / "m.gguf", header(tensors=1), info)

    tensors = open_gguf(path).tensors

    assert tensors.shape("a") == shape
    with pytest.raises(BrokenCheckpoint, match=block_type.name) as caught:
        tensors.read("a")
    assert caught.value.tensor == "a"


def test_shapes_have_the_outermost_axis_first(tmp_path: Path) -> None:
    tensors = open_gguf(write_gguf(tmp_path / "m.gguf")).tensors

    assert list(tensors.names()) == list(GGUF_TENSORS)
    for name, values in GGUF_TENSORS.items():
        assert tensors.shape(name) == values.shape
        np.testing.assert_array_equal(np.asarray(tensors.read(name)), values)


def test_metadata_becomes_plain_values(tmp_path: Path) -> None:
    checkpoint = open_gguf(write_gguf(tmp_path / "m.gguf"))

    assert checkpoint.layout == "gguf"
    assert checkpoint.path == str(tmp_path / "m.gguf")
    assert dict(checkpoint.config) == {
        "general.architecture": "llama",
        "llama.block_count": 2,
        "llama.rope.freq_base": 0.5,
        "tokenizer.ggml.add_bos_token": True,
        "test.uint64": 2**63,
        "test.int64": -(2**62),
        "test.float64": 0.1,
        "test.int8": -3,
        "tokenizer.ggml.tokens": ["<s>", "Ġé", ""],
        "tokenizer.ggml.token_type": [3, 1, 1],
        "tokenizer.ggml.scores": [0.5, -1.5, 2.0],
        "tokenizer.chat_template": "{{ messages }}",
    }


def test_the_file_says_how_its_tensors_are_aligned(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_custom_alignment(128)
    for name in ("a", "b"):
        writer.add_tensor(name, np.arange(7, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    tensors = open_gguf(tmp_path / "m.gguf").tensors

    np.testing.assert_array_equal(np.asarray(tensors.read("b")), np.arange(7))


def test_a_file_cut_anywhere_is_broken(tmp_path: Path) -> None:
    whole = write_gguf(tmp_path / "whole.gguf").read_bytes()
    with (tmp_path / "whole.gguf").open("rb") as file:
        data_start = read_header(file, "").data_start
    padding = 24  # the last tensor has 8 bytes and its padding may be missing
    cut = tmp_path / "cut.gguf"
    for length in range(len(whole) - padding):
        cut.write_bytes(whole[:length])
        with pytest.raises(BrokenCheckpoint) as caught:
            open_gguf(cut)
        assert caught.value.file == str(cut)
        assert length < data_start or caught.value.tensor in GGUF_TENSORS


def test_a_file_that_shrinks_after_it_was_opened_is_broken(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf")
    tensors = open_gguf(path).tensors
    path.write_bytes(path.read_bytes()[:-30])

    with pytest.raises(BrokenCheckpoint, match=r"expected 8 bytes .* found 2 bytes"):
        tensors.read("output_norm.weight")
    path.unlink()
    with pytest.raises(BrokenCheckpoint, match="No such file"):
        tensors.read("output_norm.weight")


def test_a_file_that_may_not_be_read_is_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, mode: str) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    path = write_gguf(tmp_path / "m.gguf")
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(BrokenCheckpoint, match="readable file, found Permission"):
        open_gguf(path)


def test_an_unknown_tensor_is_named(tmp_path: Path) -> None:
    tensors = open_gguf(write_gguf(tmp_path / "m.gguf")).tensors
    for ask in (tensors.read, tensors.shape):
        with pytest.raises(BrokenCheckpoint, match=r"tensor blk\.7"):
            ask("blk.7")


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([b"GGML" + bytes(20)], "begins with b'GGUF', found b'GGML'"),
        ([header(version=1)], "GGUF version 2 or 3, little-endian, found 1"),
        ([header(version=3 << 24)], "little-endian, found 50331648"),
        ([header(tensors=COUNT)], f"room for its {COUNT} tensors"),
        ([header(keys=COUNT)], f"room for its {COUNT} metadata keys"),
        ([header(keys=1), struct.pack("<QQ", COUNT, 0)], "at most 1024 bytes"),
        ([header(keys=1), struct.pack("<Q", 0), bytes(9)], "found an empty name"),
        ([header(keys=1), struct.pack("<Q", 1), b"\xff" * 9], "UTF-8"),
        ([header(keys=1), EMPTY_KEY, struct.pack("<I", 13)], "found type 13"),
        (
            [header(keys=1), EMPTY_KEY, struct.pack("<IQ", 8, COUNT)],
            "bytes for metadata k, found",
        ),
        (
            [header(keys=1), EMPTY_KEY, struct.pack("<IIQ", 9, 0, COUNT)],
            f"its {COUNT} entries of metadata k",
        ),
        (
            [header(keys=1), EMPTY_KEY, struct.pack("<IIQ", 9, 12, 3)],
            "24 bytes for metadata k",
        ),
        (
            [header(keys=1), EMPTY_KEY, struct.pack("<IIQIQ", 9, 9, 1, 0, 1)],
            "found type 9",
        ),
        (
            [header(keys=2), *2 * [EMPTY_KEY, struct.pack("<I?", 7, True)]],
            "every metadata key once, found k twice",
        ),
        (
            [
                header(keys=1),
                struct.pack("<Q", 17) + b"general.alignment",
                struct.pack("<II", 4, 24),
            ],
            "a power of two as general.alignment, found 24",
        ),
    ],
)
def test_a_header_that_cannot_be_is_refused(
    parts: list[bytes], message: str, tmp_path: Path
) -> None:
    path = file_of(tmp_path / "m.gguf", *parts, data=b"")
    tracemalloc.start()
    try:
        with pytest.raises(BrokenCheckpoint) as caught:
            open_gguf(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert message in str(caught.value)
    assert caught.value.file == str(path)
    assert peak < 1 << 20


@pytest.mark.parametrize(
    ("infos", "message"),
    [
        ([tensor("a", (4, 2**62))], "bytes from 96 on, found a file of 4192 bytes"),
        ([tensor("a", (COUNT,) * 4)], "found a file of"),
        ([tensor("a", (4, 8), offset=32)], "its data at byte 0, after"),
        ([tensor("a", (4, 8), type_id=4)], "a known block type, found type 4"),
        ([tensor("a", (4, 8), type_id=999)], "a known block type, found type 999"),
        ([tensor("a", (4, 8), type_id=2)], "whole Q4_0 blocks of 32, found rows of 8"),
        ([tensor("a", ())], "1 to 4 axes, found 0"),
        ([tensor("a", (1,) * 5)], "1 to 4 axes, found 5"),
        ([tensor("a", (3, 0))], "axes of 1 or more, found sizes [3, 0]"),
        ([tensor("a", (8,)), tensor("a", (8,), offset=32)], "once, found it twice"),
        ([tensor("b", (8,)), tensor("a", (8,))], "its data at byte 32, after"),
    ],
)
def test_a_tensor_that_cannot_be_is_named(
    infos: list[bytes], message: str, tmp_path: Path
) -> None:
    path = file_of(tmp_path / "m.gguf", header(tensors=len(infos)), *infos)

    with pytest.raises(BrokenCheckpoint) as caught:
        open_gguf(path)

    assert message in str(caught.value)
    assert caught.value.tensor == "a"


def test_an_array_longer_than_any_vocabulary_is_refused(tmp_path: Path) -> None:
    array = struct.pack("<IIQ", 9, 0, 5_000_000)
    path = file_of(
        tmp_path / "m.gguf", header(keys=1), EMPTY_KEY, array, data=bytes(6_000_000)
    )
    with pytest.raises(BrokenCheckpoint, match="at most 4194304 entries"):
        open_gguf(path)


def test_a_part_of_a_split_model_says_how_to_join_it(tmp_path: Path) -> None:
    key = struct.pack("<Q", 11) + b"split.count" + struct.pack("<IH", 2, 3)
    with pytest.raises(UnsupportedModel, match="--merge"):
        open_gguf(file_of(tmp_path / "m.gguf", header(keys=1), key))


@pytest.mark.parametrize("name", ["folder", "nowhere.gguf"])
def test_what_is_no_file_is_no_gguf(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(BrokenCheckpoint, match="a GGUF file, found no such file"):
        open_gguf(tmp_path / name)


def test_every_byte_of_a_header_may_be_wrong(tmp_path: Path) -> None:
    whole = write_gguf(tmp_path / "whole.gguf").read_bytes()
    with (tmp_path / "whole.gguf").open("rb") as file:
        data_start = read_header(file, "").data_start
    path = tmp_path / "wrong.gguf"
    refused = 0
    for position, value in itertools.product(range(data_start), (0x00, 0xFF)):
        path.write_bytes(whole[:position] + bytes([value]) + whole[position + 1 :])
        try:
            tensors = open_gguf(path).tensors
            for name in tensors.names():
                assert np.asarray(tensors.read(name)).shape == tensors.shape(name)
        except (BrokenCheckpoint, UnsupportedModel):
            refused += 1
    assert refused > data_start / 2
