"""Tiny random models: two layers, width 32, vocabulary 64."""

import dataclasses
from typing import NamedTuple

import jax

from jaxserver.core.config import ModelConfig
from jaxserver.core.params import init_params
from jaxserver.core.sharding import make_mesh, named_sharding
from jaxserver.core.transformer import transformer_fns
from jaxserver.ports.model import ModelFns, Params

TINY_LLAMA = ModelConfig(
    vocab_size=64,
    num_layers=2,
    embed=32,
    mlp=48,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    max_len=512,
)
TINY_BYTES = dataclasses.replace(TINY_LLAMA, vocab_size=258)
"""Speaks the vocabulary of `fakes.ByteTokenizer`."""


class TinyModel(NamedTuple):
    fns: ModelFns
    params: Params
    mesh: jax.sharding.Mesh


def one_device() -> jax.sharding.Mesh:
    return make_mesh((1, 1, 1), ("dp", "fsdp", "mp"), jax.devices()[:1])


def tiny_model(
    config: ModelConfig = TINY_LLAMA,
    max_len: int = 256,
    page_size: int | None = None,
    seed: int = 0,
) -> TinyModel:
    """Random weights, large enough that logits differ, on one device."""
    mesh = one_device()
    params = jax.tree.map(
        lambda leaf: jax.device_put(
            leaf * (10.0 if leaf.ndim > 1 else 1.0),
            named_sharding((None,) * leaf.ndim, leaf.shape, mesh),
        ),
        init_params(config, seed),
    )
    return TinyModel(transformer_fns(config, max_len, page_size), params, mesh)
