from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from jaxserver.adapters.checkpoints import safetensors
from jaxserver.adapters.checkpoints.safetensors import open_safetensors
from jaxserver.ports.errors import BrokenCheckpoint
from tests.unit.adapters.checkpoints.files import (
    write_folder,
    write_index,
    write_json,
)

VALUES = np.arange(6, dtype=np.float32).reshape(2, 3)
FLOAT_TYPES = (np.float64, np.float32, np.float16, ml_dtypes.bfloat16)


@pytest.mark.parametrize("dtype", FLOAT_TYPES)
def test_a_tensor_comes_as_it_was_written(dtype: type, tmp_path: Path) -> None:
    tensors = open_safetensors(write_folder(tmp_path, {"a": VALUES.astype(dtype)}))
    values = np.asarray(tensors.tensors.read("a"))
    assert values.dtype == dtype
    assert values.shape == tensors.tensors.shape("a") == (2, 3)
    np.testing.assert_array_equal(values.astype(np.float32), VALUES)


def test_the_configuration_is_the_content_of_its_file(tmp_path: Path) -> None:
    checkpoint = open_safetensors(write_folder(tmp_path, {"a": VALUES}))
    assert checkpoint.layout == "huggingface"
    assert checkpoint.path == str(tmp_path)
    assert checkpoint.config == {"model_type": "llama"}


def test_shards_are_one_source(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, {"a": VALUES, "b": VALUES + 1}, {"c": VALUES + 2})
    tensors = open_safetensors(folder).tensors
    assert set(tensors.names()) == {"a", "b", "c"}
    np.testing.assert_array_equal(np.asarray(tensors.read("b")), VALUES + 1)
    np.testing.assert_array_equal(np.asarray(tensors.read("c")), VALUES + 2)


def test_a_shard_may_be_a_link_to_elsewhere(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "snapshot", {"a": VALUES}, {"b": VALUES})
    shard = folder / "model-00001-of-00002.safetensors"
    shard.symlink_to(shard.rename(tmp_path / "blob"))
    assert open_safetensors(folder).tensors.shape("a") == (2, 3)


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, ml_dtypes.float8_e4m3fn])
def test_a_type_that_is_no_plain_float_is_named(dtype: type, tmp_path: Path) -> None:
    tensors = open_safetensors(write_folder(tmp_path, {"a": VALUES.astype(dtype)}))
    assert tensors.tensors.shape("a") == (2, 3)
    with pytest.raises(BrokenCheckpoint, match="F64, F32, F16, BF16, found") as caught:
        tensors.tensors.read("a")
    assert caught.value.tensor == "a"


def test_a_file_that_may_not_be_read_is_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, framework: str) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    folder = write_folder(tmp_path, {"a": VALUES})
    monkeypatch.setattr(safetensors, "safe_open", refuse)
    with pytest.raises(BrokenCheckpoint, match="readable file, found Permission"):
        open_safetensors(folder)


def test_an_unknown_tensor_is_named(tmp_path: Path) -> None:
    tensors = open_safetensors(write_folder(tmp_path, {"a": VALUES})).tensors
    for ask in (tensors.read, tensors.shape):
        with pytest.raises(BrokenCheckpoint, match="tensor b: expected it among the 1"):
            ask("b")


def test_a_file_cut_anywhere_is_broken(tmp_path: Path) -> None:
    file = write_folder(tmp_path, {"a": VALUES}) / "model.safetensors"
    whole = file.read_bytes()
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        with pytest.raises(BrokenCheckpoint, match="a whole safetensors file") as error:
            open_safetensors(tmp_path)
        assert error.value.file == str(file)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, {"a": VALUES}, {"b": VALUES})
    shard = folder / "model-00002-of-00002.safetensors"
    shard.unlink()
    with pytest.raises(BrokenCheckpoint, match="found no such file") as caught:
        open_safetensors(folder)
    assert caught.value.file == str(shard)


def test_a_tensor_that_only_the_index_knows_is_named(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, {"a": VALUES}, {"b": VALUES})
    shard = "model-00001-of-00002.safetensors"
    write_index(folder, {"a": shard, "lost": shard})
    with pytest.raises(BrokenCheckpoint, match="tensor lost: expected it to be here"):
        open_safetensors(folder)


@pytest.mark.parametrize(
    "file",
    ["../a", "/etc/passwd", "sub/a", "..", ".", "", "a\\b", "C:a", "a\0", 7, None, []],
)
def test_an_index_cannot_lead_out_of_its_folder(file: object, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", {"a": VALUES}, {"b": VALUES})
    write_folder(tmp_path / "a", {"a": VALUES})
    index = write_index(folder, {"a": file})
    with pytest.raises(BrokenCheckpoint, match="the name of a file beside it") as error:
        open_safetensors(folder)
    assert (error.value.file, error.value.tensor) == (str(index), "a")


@pytest.mark.parametrize("weight_map", [None, [], {}, "a", 3])
def test_an_index_without_a_map_is_broken(weight_map: object, tmp_path: Path) -> None:
    folder = write_folder(tmp_path, {"a": VALUES}, {"b": VALUES})
    index = write_index(folder, weight_map)
    with pytest.raises(BrokenCheckpoint, match="weight_map") as caught:
        open_safetensors(folder)
    assert caught.value.file == str(index)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"{", "expected JSON"),
        (b"", "expected JSON"),
        (b"\xff\xfe\xfd", "expected JSON"),
        (b"[" * 100_000, "expected JSON"),
        (b"[1]", "expected a JSON object, found list"),
    ],
)
@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_bad_json_names_its_file(
    name: str, content: bytes, expected: str, tmp_path: Path
) -> None:
    folder = write_folder(tmp_path, {"a": VALUES}, {"b": VALUES})
    (folder / name).write_bytes(content)
    with pytest.raises(BrokenCheckpoint, match=expected) as caught:
        open_safetensors(folder)
    assert caught.value.file == str(folder / name)


def test_a_folder_without_a_configuration_is_broken(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, {"a": VALUES})
    (folder / "config.json").unlink()
    with pytest.raises(BrokenCheckpoint, match="No such file") as caught:
        open_safetensors(folder)
    assert caught.value.file == str(folder / "config.json")


def test_a_weights_file_that_is_a_folder_is_broken(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", {})
    (tmp_path / "model.safetensors").mkdir()
    with pytest.raises(BrokenCheckpoint, match="found no such file"):
        open_safetensors(tmp_path)
