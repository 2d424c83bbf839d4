"""Reads PyTorch's own weight files, where PyTorch is installed to do it."""

import importlib.util
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes

from jaxserver.adapters.checkpoints.folder import (
    CONFIG,
    broken,
    files_of,
    of_shards,
    place_of,
    read_json,
)
from jaxserver.ports.errors import UnsupportedModel
from jaxserver.ports.tensors import Checkpoint, HostArray

SINGLE_FILE = "pytorch_model.bin"
INDEX = "pytorch_model.bin.index.json"


def need_torch(what: str) -> None:
    """Looks for PyTorch.

    Raises:
        UnsupportedModel: It is not installed; says what to do.
    """
    if importlib.util.find_spec("torch") is None:
        raise UnsupportedModel(
            f"{what}, read by PyTorch, which is not installed,",
            "it after `pip install torch`; the same weights as safetensors, which need "
            "no PyTorch, by JAXServer.load(folder)",
        )


def open_torch(folder: Path) -> Checkpoint:
    """Opens `pytorch_model.bin`, or every shard that the index names.

    Files of PyTorch 1.6 and later are mapped into memory, and each tensor is read when
    it is asked for; older ones are read at once.

    Raises:
        BrokenCheckpoint: A file is missing, or not what another says it is.
        UnsupportedModel: PyTorch is not installed.
    """
    is_single = (folder / SINGLE_FILE).exists()
    need_torch(str(folder / (SINGLE_FILE if is_single else INDEX)))
    return Checkpoint(
        path=str(folder),
        layout="huggingface",
        config=read_json(folder / CONFIG),
        tensors=TorchTensors(
            _load(folder / SINGLE_FILE)
            if is_single
            else of_shards(folder / INDEX, _load),
            folder,
        ),
        files=(str(folder / SINGLE_FILE),) if is_single else files_of(folder / INDEX),
    )


def _load(file: Path) -> dict[str, Any]:
    """The tensors by name; nothing but tensors is unpickled."""
    import torch  # noqa: PLC0415  # there or not

    if not file.is_file():
        raise broken(file, "a file of PyTorch", "no such file")
    with file.open("rb") as opened:
        is_zip = opened.read(2) == b"PK"
    try:
        tensors = torch.load(file, map_location="cpu", weights_only=True, mmap=is_zip)
    except Exception as error:  # it raises whatever its many readers raise
        found = (str(error).splitlines() or [type(error).__name__])[0].split(". ")[0]
        raise broken(file, "tensors that PyTorch reads", found) from error
    if not isinstance(tensors, Mapping):
        raise broken(file, "tensors by name", type(tensors).__name__)
    return dict(tensors)


class TorchTensors:
    """A `TensorSource` over tensors of PyTorch."""

    def __init__(self, tensors: Mapping[str, Any], folder: Path) -> None:
        self._tensors = tensors
        self._folder = folder

    def names(self) -> Iterable[str]:
        return self._tensors.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(place_of(self._tensors, name, self._folder).shape)

    def read(self, name: str) -> HostArray:
        import torch  # noqa: PLC0415  # there or not

        tensor = place_of(self._tensors, name, self._folder)
        if not tensor.is_floating_point():
            raise broken(self._folder, "a plain float type", str(tensor.dtype), name)
        if tensor.dtype == torch.bfloat16:
            bits: Any = tensor.contiguous().view(torch.int16).numpy()
            rounded: HostArray = bits.view(ml_dtypes.bfloat16)
            return rounded
        values: HostArray = tensor.numpy()
        return values
