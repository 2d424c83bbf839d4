"""The port through which weights come off a disk, one tensor at a time."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, Protocol


class HostArray(Protocol):
    """An array in host memory; numpy's `ndarray` is one."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> Any: ...

    def __array__(self) -> Any: ...


class TensorSource(Protocol):
    """The tensors of a checkpoint, under the names the checkpoint gives them."""

    def names(self) -> Iterable[str]: ...

    def shape(self, name: str) -> tuple[int, ...]:
        """Its shape, outermost axis first, without reading it."""
        ...

    def read(self, name: str) -> HostArray:
        """Its values as a float array, dequantised where the file is quantised.

        Raises:
            BrokenCheckpoint: The tensor is missing, cut short or of an unknown type.
        """
        ...


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A model as it was found on disk.

    Attributes:
        path: The file or folder.
        layout: Whose names the tensors and the configuration have: `gguf` for
            llama.cpp's, `huggingface` for transformers' as in PyTorch, `flax` for its
            Flax classes', the parts of a name joined by dots.
        config: GGUF metadata, or the contents of `config.json`.
        tensors: The weights.
        files: Paths of the files that they are in, in the order of their names.
    """

    path: str
    layout: str
    config: Mapping[str, Any]
    tensors: TensorSource
    files: tuple[str, ...] = ()
