import hashlib
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from jaxserver.adapters.checkpoints import digest
from jaxserver.adapters.checkpoints.digest import file_digest, files_digest
from jaxserver.adapters.checkpoints.locate import open_checkpoint
from tests.unit.adapters.checkpoints.files import GGUF_TENSORS, write_folder, write_gguf

ONE, TWO = ({name: np.full(5, n, np.float32)} for n, name in enumerate("ab"))


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 24])
def test_a_file_of_any_length_has_its_sha_256(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(digest, "READ_BYTES", 8)
    content = bytes(range(size))
    (tmp_path / "file").write_bytes(content)
    assert file_digest(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def printed(folder: Path, pattern: str) -> str:
    """What the system's own program says of some files."""
    names = sorted(file.name for file in folder.glob(pattern))
    command = ["sha256sum", *names]
    done = subprocess.run(command, cwd=folder, capture_output=True, check=True)
    return done.stdout.decode()


needs_sha256sum = pytest.mark.skipif(
    shutil.which("sha256sum") is None, reason="compares with sha256sum"
)


@needs_sha256sum
def test_one_file_of_weights_has_its_own_digest(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_folder(tmp_path / "m", ONE))
    told = printed(tmp_path / "m", "*.safetensors").split()[0]
    assert files_digest(checkpoint.files) == told


@needs_sha256sum
def test_several_files_have_that_of_what_sha256sum_prints(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_folder(tmp_path / "m", ONE, TWO))
    lines = printed(tmp_path / "m", "*.safetensors")
    assert lines.count("\n") == 2
    told = hashlib.sha256(lines.encode()).hexdigest()
    assert files_digest(checkpoint.files) == told


def test_a_gguf_file_has_its_own_digest(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "m.gguf", GGUF_TENSORS)
    told = hashlib.sha256(file.read_bytes()).hexdigest()
    assert files_digest(open_checkpoint(file).files) == told
