"""Weights kept in fewer bits are computed in float32, and never all of them at once."""

import functools
import math

import jax
import numpy as np
import pytest

from jaxserver.core.config import EngineConfig, ModelConfig
from jaxserver.core.executables import build_steps
from jaxserver.core.kv_cache import cache_dtype
from jaxserver.core.memory import plan_memory
from jaxserver.core.ops.attention_blocks import ROWS
from jaxserver.core.ops.fp8 import FP8
from jaxserver.core.ops.paged import BLOCK
from jaxserver.core.params import (
    ParamSpec,
    init_params,
    is_spec,
    kept_as,
    leaves,
    param_specs,
)
from jaxserver.core.transformer import transformer_fns
from jaxserver.ports.model import ModelFns
from jaxserver.ports.types import SamplingParams
from tests.stepping import Part, Stepper, Wish
from tests.tiny import TINY_LLAMA, one_device

ENGINE = EngineConfig(slots=4, max_len=128, max_stream_tokens=8)
DEEP = ModelConfig(
    vocab_size=512,
    num_layers=6,
    embed=256,
    mlp=1024,
    num_heads=4,
    num_kv_heads=2,
    head_dim=64,
    max_len=128,
)
SCALARS = 1024
"""Bytes of what a loop needs besides, each aligned to 64."""
WISH = Wish(
    prompt=tuple(range(3, 27)), sampling=SamplingParams(greedy=True, logprobs=5)
)


def stepper(dtype: str, kept: str) -> Stepper:
    rounded = jax.tree.map(
        lambda leaf: (leaf * 10).astype(dtype).astype(kept),
        jax.device_put(init_params(TINY_LLAMA, seed=0), jax.devices()[0]),
    )
    fns = transformer_fns(TINY_LLAMA, ENGINE.max_len)
    return Stepper(build_steps(fns, rounded, ENGINE, one_device()), rounded, ENGINE)


def answered(steps: Stepper) -> tuple[np.ndarray, np.ndarray]:
    steps.prefill(Part(wish=WISH, slot=1))
    outcome = steps.decode(ENGINE.slots, 8)
    return np.asarray(outcome.tokens), np.asarray(outcome.top_logprobs)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_an_answer_has_the_bits_of_the_same_weights_in_float32(dtype: str) -> None:
    tokens, logprobs = answered(stepper(dtype, dtype))
    wide_tokens, wide_logprobs = answered(stepper(dtype, "float32"))
    np.testing.assert_array_equal(tokens, wide_tokens)
    np.testing.assert_array_equal(logprobs, wide_logprobs)


def deep_fns(kept: str) -> ModelFns:
    return transformer_fns(DEEP, ENGINE.max_len, cache_dtype=cache_dtype(kept))


@functools.cache
def temporary_bytes(dtype: str, kind: str) -> int:
    specs = kept_as(param_specs(DEEP), dtype)
    params = jax.tree.map(
        functools.partial(placed_shape, dtype), specs, is_leaf=is_spec
    )
    fns = deep_fns(dtype)
    steps = build_steps(fns, params, ENGINE, one_device())
    compiled = steps.prefill[24]() if kind == "prefill" else steps.decode[4]()
    analysis = compiled.memory_analysis()
    assert analysis is not None
    return int(analysis.temp_size_in_bytes)


def placed_shape(dtype: str, spec: ParamSpec) -> jax.ShapeDtypeStruct:
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.ShapeDtypeStruct(spec.shape, spec.dtype or dtype, sharding=sharding)


def widened_cache_bytes(dtype: str) -> int:
    """Of one block of keys and one of values, where they have fewer bits."""
    block = ROWS * DEEP.num_kv_heads * DEEP.head_dim * BLOCK
    return 0 if cache_dtype(dtype) == "float32" else 4 * 2 * block


@pytest.mark.parametrize("kind", ["prefill", "decode"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", FP8])
def test_a_step_needs_room_for_one_widened_weight(dtype: str, kind: str) -> None:
    specs = leaves(kept_as(param_specs(DEEP), dtype))
    plan = plan_memory("deep", specs, deep_fns(dtype), ENGINE, (one_device(), dtype))
    room = temporary_bytes("float32", kind) + plan.working_bytes_per_device
    room += widened_cache_bytes(dtype)
    kept_bytes = np.dtype(dtype).itemsize
    assert plan.weights_bytes_per_device > kept_bytes * plan.working_bytes_per_device
    assert temporary_bytes(dtype, kind) <= room + SCALARS


def test_a_decode_step_in_int8_widens_no_weight() -> None:
    specs = leaves(kept_as(param_specs(DEEP), "int8"))
    fns = deep_fns("int8")
    plan = plan_memory("deep", specs, fns, ENGINE, (one_device(), "int8"))
    assert plan.working_bytes_per_device == 0
    smallest = min(math.prod(spec.shape) for spec in specs if spec.dtype == "int8")
    room = widened_cache_bytes("int8") + 4 * smallest
    assert temporary_bytes("int8", "decode") < room
