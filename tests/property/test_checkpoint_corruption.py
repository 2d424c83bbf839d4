"""However a file is broken, opening it works or names what is wrong."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import gguf
import msgpack
import numpy as np
from flax.serialization import to_bytes
from hypothesis import given

from jaxserver.adapters.checkpoints.gguf import open_gguf
from jaxserver.adapters.checkpoints.msgpack_files import open_msgpack
from jaxserver.adapters.checkpoints.safetensors import open_safetensors
from jaxserver.ports.errors import (
    BrokenCheckpoint,
    JaxServerError,
    UnsupportedModel,
)
from jaxserver.ports.tensors import Checkpoint
from tests.property.spoiling import Content, spoiled_bytes
from tests.unit.adapters.checkpoints.files import write_folder, write_gguf


def gguf_bytes() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        blocks = np.zeros((4, 18), np.uint8)
        path = write_gguf(
            Path(folder) / "m.gguf",
            {"a": blocks, "b": blocks + 1},
            gguf.GGMLQuantizationType.Q4_0,
        )
        return path.read_bytes()


def safetensors_bytes() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        values = np.ones((4, 4), np.float32)
        path = write_folder(Path(folder), {"a": values, "b": values})
        return (path / "model.safetensors").read_bytes()


def stream_bytes() -> bytes:
    """Pairs of name and array, one after the other."""
    values = np.ones((4, 4), np.float32)
    pairs = [(("a", "b"), to_bytes(values)), (("c",), to_bytes(values[0]))]
    return b"".join(msgpack.packb(pair) for pair in pairs)


GGUF = Content(gguf_bytes())
TREE = Content(
    to_bytes({"a": {"b": np.ones((4, 4), np.float32)}, "c": np.ones(2, np.float16)})
)
STREAM = Content(stream_bytes())
SAFETENSORS = Content(safetensors_bytes())


def error_of_reading(checkpoint: Callable[[], Checkpoint]) -> JaxServerError | None:
    try:
        tensors = checkpoint().tensors
        for name in tensors.names():
            assert np.asarray(tensors.read(name)).shape == tensors.shape(name)
    except (BrokenCheckpoint, UnsupportedModel) as error:
        return error
    return None


@given(content=spoiled_bytes(GGUF))
def test_a_corrupted_gguf_file_is_read_or_refused(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.gguf"
        path.write_bytes(content)
        error = error_of_reading(lambda: open_gguf(path))
    assert error is None or str(path) in str(error)
    assert error is not None or content.startswith(b"GGUF")


@given(content=spoiled_bytes(SAFETENSORS))
def test_a_corrupted_safetensors_file_is_read_or_refused(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        (Path(folder) / "config.json").write_text("{}")
        path.write_bytes(content)
        error = error_of_reading(lambda: open_safetensors(Path(folder)))
    assert error is None or str(path) in str(error)
    assert error is not None or len(content) >= 8


@given(content=spoiled_bytes(TREE) | spoiled_bytes(STREAM))
def test_a_corrupted_msgpack_file_is_read_or_refused(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "flax_model.msgpack"
        (Path(folder) / "config.json").write_text("{}")
        path.write_bytes(content)
        error = error_of_reading(lambda: open_msgpack(Path(folder), path))
    assert error is None or str(path) in str(error)
    assert error is not None or content[0] in {0x80, 0x81, 0x82, 0x92}
