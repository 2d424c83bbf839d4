"""Mends what transformers' Flax files lost to a newer JAX, in this one place.

Names that JAX has dropped: `jnp.clip(x, a_min=, a_max=)`, which T5, MT5 and LongT5
call for every position, and `jnp.cat`, which Bloom calls for a number of heads that is
no power of two.
"""

import importlib
import types
from typing import Any

import jax.numpy as jnp

_PACKAGE = "transformers.models."
_MENDED = (
    "t5.modeling_flax_t5",
    "longt5.modeling_flax_longt5",
    "bloom.modeling_flax_bloom",
)


class _OlderNumpy(types.ModuleType):
    """`jax.numpy` with the names of its past."""

    def __getattr__(self, name: str) -> Any:
        return getattr(jnp, name)

    @staticmethod
    def clip(x: Any, a_min: Any = None, a_max: Any = None) -> Any:
        return jnp.clip(x, a_min, a_max)

    @staticmethod
    def cat(arrays: Any, axis: int = 0) -> Any:
        return jnp.concatenate(arrays, axis=axis)


_NUMPY = _OlderNumpy("jax.numpy")


def mend() -> None:
    """Gives those files the names they look for; call it before a model is made."""
    for name in _MENDED:
        importlib.import_module(_PACKAGE + name).jnp = _NUMPY  # type: ignore[attr-defined]  # it has one
