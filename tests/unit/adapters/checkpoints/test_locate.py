import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from flax.serialization import to_bytes

from jaxserver.adapters.checkpoints import hub
from jaxserver.adapters.checkpoints.locate import locate, open_checkpoint
from jaxserver.ports.config import DEFAULT_MODEL
from jaxserver.ports.errors import BrokenCheckpoint, ModelNotFound, UnsupportedModel
from jaxserver.ports.progress import Progress
from tests.unit.adapters.checkpoints.files import write_folder, write_gguf, write_json

VALUES = {"a": np.ones((2, 3), np.float32)}


def silent(stage: str, done: int, total: int) -> None:
    """Nobody looks."""


def no_download(repo: str, progress: Progress) -> Path:
    raise AssertionError(f"{repo} was looked for on the hub")


def test_the_default_model_is_a_packaged_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAXSERVER_CACHE", "/models")
    pulled: list[tuple[str, Path]] = []

    def pull(name: str, cache: Path, progress: Progress) -> Path:
        pulled.append((name, cache))
        progress("download", 1, 1)
        return cache / "file"

    path = locate(DEFAULT_MODEL, silent, pull=pull, download=no_download)

    assert path == Path("/models/file")
    assert pulled == [(DEFAULT_MODEL, Path("/models"))]


def test_a_folder_and_a_gguf_file_are_where_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "owner" / "name").mkdir(parents=True)
    (tmp_path / "m.gguf").touch()
    for model in ("owner/name", "m.gguf", str(tmp_path), "."):
        assert locate(model, silent, download=no_download) == Path(model)
    found = locate("~/m.gguf", silent, download=no_download)
    assert found == tmp_path / "m.gguf"


def test_a_hub_id_is_downloaded(tmp_path: Path) -> None:
    asked: list[str] = []

    def download(repo: str, progress: Progress) -> Path:
        asked.append(repo)
        return tmp_path

    assert locate("owner/name-1.5_b", silent, download=download) == tmp_path
    assert asked == ["owner/name-1.5_b"]


def test_the_hubs_own_library_downloads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "download", lambda repo, progress: tmp_path / repo)
    assert locate("owner/name", silent) == tmp_path / "owner" / "name"


@pytest.mark.parametrize(
    "model",
    ["nowhere", "/no/such/folder", "./a/b", "a/b/c", "a/b.gguf", "", "a\0b", "x" * 999],
)
def test_anything_else_lists_what_is_allowed(model: str) -> None:
    with pytest.raises(ModelNotFound) as caught:
        locate(model, silent, download=no_download)
    assert repr(model) in str(caught.value)
    assert (
        f"allowed are a packaged model ({DEFAULT_MODEL}), a folder, a .gguf file or a "
        "hub id like owner/name"
    ) in str(caught.value)


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ModelNotFound, match=r"is a file, but no \.gguf file"):
        locate(str(tmp_path / "model.safetensors"), silent, download=no_download)


def test_near_misses_are_named(tmp_path: Path) -> None:
    (tmp_path / "Tiny.gguf").touch()
    (tmp_path / "tiny.txt").touch()
    with pytest.raises(ModelNotFound, match=rf"near it: {tmp_path}/Tiny\.gguf$"):
        locate(str(tmp_path / "tiny.gguf"), silent, download=no_download)
    with pytest.raises(ModelNotFound, match=f"near it: {DEFAULT_MODEL}$"):
        locate("SmolLM2-135M", silent, download=no_download)


def test_the_format_is_found_out(tmp_path: Path) -> None:
    gguf = write_gguf(tmp_path / "m.gguf")
    single = write_folder(tmp_path / "single", VALUES)
    sharded = write_folder(tmp_path / "sharded", VALUES, {"b": VALUES["a"]})
    (tmp_path / "with_gguf").mkdir()
    inside = write_gguf(tmp_path / "with_gguf" / "m.gguf")

    assert open_checkpoint(gguf).layout == "gguf"
    assert open_checkpoint(single).layout == "huggingface"
    assert set(open_checkpoint(sharded).tensors.names()) == {"a", "b"}
    assert open_checkpoint(inside.parent).path == str(inside)


def test_safetensors_go_before_gguf(tmp_path: Path) -> None:
    write_gguf(write_folder(tmp_path, VALUES) / "m.gguf")
    assert open_checkpoint(tmp_path).layout == "huggingface"


def test_several_gguf_files_are_one_too_many(tmp_path: Path) -> None:
    for name in ("b.gguf", "a.gguf"):
        write_gguf(tmp_path / name)
    with pytest.raises(BrokenCheckpoint, match=r"found a\.gguf, b\.gguf"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["tf_model.h5", "weights.bin"])
def test_weights_in_another_format_are_unsupported(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).touch()
    with pytest.raises(UnsupportedModel, match=r"supported: .*safetensors.*gguf") as e:
        open_checkpoint(tmp_path)
    assert e.value.model == str(tmp_path / name)


def without_torch(name: str) -> None:
    """What `find_spec` finds where PyTorch is not installed."""
    assert name == "torch"


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model.bin.index.json"])
def test_pytorchs_own_files_need_pytorch_and_say_what_does_not(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", without_torch)
    (tmp_path / name).touch()
    with pytest.raises(UnsupportedModel, match=r"pip install torch.*safetensors") as e:
        open_checkpoint(tmp_path)
    assert str(tmp_path / name) in e.value.model


def test_of_a_folders_formats_the_one_that_needs_least_is_taken(tmp_path: Path) -> None:
    """Safetensors, GGUF, Flax's own name, a stream, PyTorch's."""
    write_json(tmp_path / "config.json", {})
    (tmp_path / "pytorch_model.bin").touch()
    files = [tmp_path / name for name in ("streaming_params", "flax_model.msgpack")]
    for number, file in enumerate(files):
        file.write_bytes(to_bytes({str(number): VALUES["a"]}))
        assert list(open_checkpoint(tmp_path).tensors.names()) == [str(number)]
    write_gguf(tmp_path / "m.gguf")
    assert open_checkpoint(tmp_path).layout == "gguf"
    assert open_checkpoint(write_folder(tmp_path, VALUES)).layout == "huggingface"


def test_several_streams_are_one_too_many(tmp_path: Path) -> None:
    for name in ("b.msgpack", "a.msgpack"):
        (tmp_path / name).touch()
    with pytest.raises(
        BrokenCheckpoint, match=r"one msgpack file, found a\.msgpack, b"
    ):
        open_checkpoint(tmp_path)


def test_a_folder_without_weights_says_what_it_has(tmp_path: Path) -> None:
    with pytest.raises(BrokenCheckpoint, match="found an empty folder"):
        open_checkpoint(tmp_path)
    for number in range(12):
        (tmp_path / f"{number:02}.txt").touch()
    with pytest.raises(BrokenCheckpoint, match=r"found 00\.txt, .* 09\.txt, \.\.\.$"):
        open_checkpoint(tmp_path)


def test_a_path_to_nothing_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"expected a folder with config\.json"):
        open_checkpoint(tmp_path / "nowhere")


def test_looking_for_a_model_imports_nothing_heavy() -> None:
    code = (
        "import sys, jaxserver.adapters.checkpoints.locate; "
        "print({'gguf', 'safetensors', 'huggingface_hub', 'numpy', 'jax'} "
        "& set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"
