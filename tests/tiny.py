"""Tiny random models: two layers, width 32, vocabulary 64."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxserver.adapters.engine.processor import multiplies_bytes
from jaxserver.core.compute import Compute
from jaxserver.core.config import ModelConfig
from jaxserver.core.kv_cache import cache_dtype
from jaxserver.core.ops.fp8 import FP8, QUANTIZED, quantize_to_fp8
from jaxserver.core.ops.quantize import quantize
from jaxserver.core.params import ParamSpec, Weights, init_params, is_spec, param_specs
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
HERE = Compute(adds_products=multiplies_bytes())
"""As the server computes on this processor."""


class TinyModel(NamedTuple):
    fns: ModelFns
    params: Params
    mesh: jax.sharding.Mesh


def one_device() -> jax.sharding.Mesh:
    return make_mesh((1, 1, 1), ("dp", "fsdp", "mp"), jax.devices()[:1])


def quantized(config: ModelConfig, params: Weights, kept: str = "int8") -> Weights:
    """The weights of products in 8 bits, as they would be loaded."""

    def in_8_bits(spec: ParamSpec, leaf: jax.Array) -> Any:
        if not spec.num_out:
            return leaf
        values = np.asarray(leaf)
        made: Any = (
            quantize_to_fp8(values, spec.num_out)
            if kept == FP8
            else quantize(values, spec.num_out, keeps_rest=spec.is_refined)
        )
        return jax.tree.map(jnp.asarray, made)

    weights: Weights = jax.tree.map(
        in_8_bits, param_specs(config), params, is_leaf=is_spec
    )
    return weights


def tiny_model(
    config: ModelConfig = TINY_LLAMA,
    max_len: int = 256,
    page_size: int | None = None,
    seed: int = 0,
    kept: str = "float32",
    compute: Compute = HERE,
) -> TinyModel:
    """Random weights, large enough that logits differ, on one device."""
    mesh = one_device()
    params = jax.tree.map(
        lambda leaf: leaf * (10.0 if leaf.ndim > 1 else 1.0), init_params(config, seed)
    )
    if kept in QUANTIZED:
        params = quantized(config, params, kept)
    else:
        params = jax.tree.map(lambda leaf: leaf.astype(kept), params)
    params = jax.tree.map(
        lambda leaf: jax.device_put(
            leaf, named_sharding((None,) * leaf.ndim, leaf.shape, mesh)
        ),
        params,
    )
    cached = cache_dtype(kept, compute.dtype)
    fns = transformer_fns(
        config, max_len, page_size, cache_dtype=cached, compute=compute
    )
    return TinyModel(fns, params, mesh)
