"""Mends what is wrong inside transformers' Flax files, in this one place.

Names that JAX has dropped: `jnp.clip(x, a_min=, a_max=)`, which T5, MT5 and LongT5
call for every position, and `jnp.cat`, which Bloom calls for a number of heads that is
no power of two. A constant where a setting belongs: the rotary table of Llama, Mistral
and Gemma, whose base is 10,000 there whatever `rope_theta` says, and which is cut on
the wrong axis when there are fewer positions than numbers in a place.
"""

import functools
import importlib
import types
from typing import Any

import jax.numpy as jnp
import numpy as np

_PACKAGE = "transformers.models."
_OLD_NAMES = (
    "t5.modeling_flax_t5",
    "longt5.modeling_flax_longt5",
    "bloom.modeling_flax_bloom",
)
_ROTARY = {
    "llama.modeling_flax_llama": "FlaxLlamaRotaryEmbedding",
    "mistral.modeling_flax_mistral": "FlaxMistralRotaryEmbedding",
    "gemma.modeling_flax_gemma": "FlaxGemmaRotaryEmbedding",
}


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


@functools.cache
def mend() -> None:
    """Gives those files what they lack; call it before a model is made."""
    numpy = _OlderNumpy("jax.numpy")
    for file in _OLD_NAMES:
        importlib.import_module(_PACKAGE + file).jnp = numpy  # type: ignore[attr-defined]  # it has one
    for file, name in _ROTARY.items():
        module = importlib.import_module(_PACKAGE + file)
        theirs = getattr(module, name)
        setattr(module, name, type(name, (theirs,), {"setup": _set_up_rotary}))


def _set_up_rotary(self: Any) -> None:
    """Sines and cosines of every position, in the base that is configured."""
    config = self.config
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    exponents = np.arange(0, head_dim, 2) / head_dim
    positions = np.arange(config.max_position_embeddings)
    angles = np.outer(positions, config.rope_theta**-exponents)
    halves = np.concatenate([angles, angles], axis=-1)
    table = np.concatenate([np.sin(halves), np.cos(halves)], axis=-1)
    self.sincos = jnp.asarray(table[:, None, :], jnp.float32)
