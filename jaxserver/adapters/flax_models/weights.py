"""The tensors of a checkpoint, as the parameters of a Flax class."""

import dataclasses
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np

from jaxserver.ports.errors import BrokenCheckpoint
from jaxserver.ports.tensors import Checkpoint, HostArray

Path: TypeAlias = tuple[str, ...]
Shapes: TypeAlias = Mapping[Path, tuple[int, ...]]
Convert: TypeAlias = Callable[[str, np.ndarray], tuple[Path, np.ndarray]]

_HEAD: Path = ("lm_head", "kernel")
_EMBEDDING: Path = ("model", "embed_tokens", "embedding")
"""Of the classes that keep a head of their own even where it is tied."""

_UNUSED = re.compile(r"(^|\.)pooler\.|^cls\.seq_relationship\.")
"""Heads of a model's training that no answer needs."""
_PYTORCHS_OWN = re.compile(
    # What it writes down although it follows from the configuration,
    r"(^|\.)(attn|attention)\.(masked_)?bias$|\.inv_freq$|(^|\.)position_ids$"
    r"|(^|\.)embed_positions\.weights?$"
    # and what it writes down a second time.
    r"|(^|\.)(generator_)?lm_head\.(decoder\.)?(weight|bias)$|(^|\.)embed_tokens\.weight$"
    r"|(^|\.)predictions\.decoder\.(weight|bias)$"
)


def plain_params(params: Any) -> Any:
    """Parameters as nested mappings, out of what Flax may have wrapped them in."""
    if isinstance(params, Mapping):
        params = {name: plain_params(part) for name, part in params.items()}
        if params.keys() == {"params"}:
            return params["params"]
    return params


def params_digest(params: Any) -> str:
    """SHA-256 of every leaf's path, type, shape and bytes, in the order of the paths.

    Args:
        params: Nested mappings, as `plain_params` gives them.
    """
    made = hashlib.sha256()
    for path, leaf in sorted(_leaves(params), key=lambda item: item[0]):
        values = np.ascontiguousarray(leaf)
        shape = "x".join(map(str, np.shape(leaf)))
        made.update(f"{'/'.join(path)} {values.dtype.name} {shape}\n".encode())
        made.update(values.reshape(-1).view(np.uint8).data)
    return made.hexdigest()


def _leaves(tree: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    if not isinstance(tree, Mapping):
        yield path, tree
        return
    for key, below in tree.items():
        yield from _leaves(below, (*path, str(key)))


def flax_weights(checkpoint: Checkpoint, model: Any) -> Checkpoint:
    """The checkpoint with its tensors under the model's own paths, joined by slashes.

    Args:
        checkpoint: In the layout `flax` or `huggingface`.
        model: Of a Flax class, with or without weights.

    Raises:
        BrokenCheckpoint: A tensor is missing, surplus or of another shape.
    """
    shapes = _flat(model.params_shape_tree)
    convert = _converter(checkpoint, model.base_model_prefix, shapes)
    ignored = _UNUSED if checkpoint.layout == "flax" else _PYTORCHS_OWN
    stored: dict[Path, str] = {}
    for name in checkpoint.tensors.names():
        shape = checkpoint.tensors.shape(name)
        path, values = convert(name, np.broadcast_to(np.float32(0), shape))
        if path in shapes and path not in stored:
            _check_shape(checkpoint, name, shapes[path], values.shape)
            stored[path] = name
        elif not (ignored.search(name) or _UNUSED.search(name)):
            expected = f"a parameter of {type(model).__name__}"
            raise _broken(checkpoint, name, expected, "none of that name")
    is_tied = bool(getattr(model.config, "tie_word_embeddings", False))
    tensors = _FlaxWeights(checkpoint, convert, stored, is_tied and _HEAD in shapes)
    for path in shapes:
        if "/".join(path) not in tensors.names():
            expected = f"it among the {len(stored)} tensors"
            raise _broken(checkpoint, ".".join(path), expected, "no such tensor")
    return dataclasses.replace(checkpoint, layout="flax", tensors=tensors)


def _flat(tree: Mapping[str, Any], path: Path = ()) -> dict[Path, tuple[int, ...]]:
    shapes: dict[Path, tuple[int, ...]] = {}
    for key, below in tree.items():
        is_tree = isinstance(below, Mapping)
        here = (*path, key)
        shapes |= _flat(below, here) if is_tree else {here: tuple(below.shape)}
    return shapes


def _converter(checkpoint: Checkpoint, prefix: str, shapes: Shapes) -> Convert:
    """From a tensor of the file to a parameter, with the rules of transformers.

    A file may lack the name that a class with a head has for the model below it, or
    have it where the class does not.
    """
    from transformers import modeling_flax_pytorch_utils  # noqa: PLC0415  # slow

    rename = modeling_flax_pytorch_utils.rename_key_and_reshape_tensor
    has_prefix = any(
        name.startswith(f"{prefix}.") for name in checkpoint.tensors.names()
    )
    wants_prefix = any(path[0] == prefix for path in shapes)

    def convert(name: str, values: np.ndarray) -> tuple[Path, np.ndarray]:
        path: Path = tuple(name.split("."))
        if has_prefix and not wants_prefix and path[0] == prefix:
            path = path[1:]
        if checkpoint.layout != "flax":
            path, values = rename(path, values, shapes, prefix)
        if wants_prefix and not has_prefix and (prefix, *path) in shapes:
            path = (prefix, *path)
        return path, values

    return convert


def _check_shape(
    checkpoint: Checkpoint, name: str, wanted: tuple[int, ...], found: tuple[int, ...]
) -> None:
    if found != wanted:
        layout = "" if checkpoint.layout == "flax" else " in Flax's layout"
        raise _broken(checkpoint, name, f"shape {wanted}{layout}", f"{found}")


def _broken(
    checkpoint: Checkpoint, tensor: str, expected: str, found: str
) -> BrokenCheckpoint:
    return BrokenCheckpoint(checkpoint.path, tensor, expected=expected, found=found)


class _FlaxWeights:
    """A `TensorSource` over another one, which reads one tensor for each it is asked.

    Where the head is tied and the class has one of its own, the embedding is read for
    it. PyTorch drops a head that a file holds besides. A Flax class would use it, so
    there it has to be the same.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        convert: Convert,
        stored: Mapping[Path, str],
        is_tied: bool,
    ) -> None:
        self._checkpoint = checkpoint
        self._convert = convert
        self._stored = {"/".join(path): name for path, name in stored.items()}
        self._head = "/".join(_HEAD) if is_tied and _EMBEDDING in stored else None

    def names(self) -> Iterable[str]:
        head = [] if self._head is None else [self._head]
        return dict.fromkeys([*self._stored, *head])

    def shape(self, name: str) -> tuple[int, ...]:
        if name == self._head:
            return self.shape("/".join(_EMBEDDING))[::-1]
        stored = self._stored[name]
        shape = self._checkpoint.tensors.shape(stored)
        return self._convert(stored, np.broadcast_to(np.float32(0), shape))[1].shape

    def read(self, name: str) -> HostArray:
        if name != self._head:
            return self._read(self._stored[name])
        head = self._read(self._stored["/".join(_EMBEDDING)]).T
        own = self._stored.get(name)
        if own is None or self._checkpoint.layout != "flax":
            return head
        if not np.array_equal(self._read(own), head):
            expected = "the embedding, as tie_word_embeddings says"
            raise _broken(self._checkpoint, own, expected, "other values")
        return head

    def _read(self, stored: str) -> np.ndarray:
        values = np.asarray(self._checkpoint.tensors.read(stored))
        return self._convert(stored, values)[1]
