"""Gives the weights of a Flax checkpoint the names and layouts of PyTorch."""

import dataclasses
from collections.abc import Iterable, Mapping

import numpy as np

from jaxserver.ports.errors import BrokenCheckpoint
from jaxserver.ports.tensors import Checkpoint, HostArray, TensorSource

_WEIGHTS = ("kernel", "embedding", "scale")
_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"


def as_huggingface(checkpoint: Checkpoint) -> Checkpoint:
    """The same weights, for who reads the layout `huggingface`.

    It holds for models of linear layers, embeddings and norms, as the native ones are.
    """
    names = {_renamed(name): name for name in checkpoint.tensors.names()}
    tied = bool(checkpoint.config.get("tie_word_embeddings"))
    return dataclasses.replace(
        checkpoint,
        layout="huggingface",
        tensors=_Renamed(checkpoint.tensors, names, checkpoint.path, tied),
    )


def _renamed(name: str) -> str:
    stem, _, last = name.rpartition(".")
    return f"{stem}.weight" if last in _WEIGHTS else name


class _Renamed:
    """A `TensorSource` over another one."""

    def __init__(
        self, tensors: TensorSource, names: Mapping[str, str], path: str, tied: bool
    ) -> None:
        self._tensors = tensors
        self._names = names
        self._path = path
        self._tied = tied

    def names(self) -> Iterable[str]:
        return self._names.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        shape = self._tensors.shape(self._stored(name))
        return shape[::-1] if self._is_turned(name) else shape

    def read(self, name: str) -> HostArray:
        values = np.asarray(self._tensors.read(self._stored(name)))
        if name == _EMBEDDING and self._tied and _HEAD in self._names:
            self._check_head(values)
        return values.T if self._is_turned(name) else values

    def _check_head(self, embedding: np.ndarray) -> None:
        """A Flax class has its own head, which would not be read where it is tied."""
        if not np.array_equal(self.read(_HEAD), embedding):
            raise BrokenCheckpoint(
                self._path,
                self._stored(_HEAD),
                expected="the embedding, as tie_word_embeddings says",
                found="other values",
            )

    def _stored(self, name: str) -> str:
        return self._names.get(name, name)

    def _is_turned(self, name: str) -> bool:
        return self._stored(name).endswith(".kernel")
