import dataclasses
from typing import Any

import jax
import pytest

from jaxserver.core.config import EngineConfig
from jaxserver.core.executables import build_steps
from jaxserver.core.memory import plan_memory
from jaxserver.core.ops.fp8 import FP8, QUANTIZED
from jaxserver.core.params import (
    Weights,
    init_params,
    is_spec,
    kept_as,
    leaves,
    param_specs,
)
from jaxserver.core.sharding import make_mesh, named_sharding
from jaxserver.core.transformer import transformer_fns
from tests.tiny import TINY_LLAMA, quantized

MAX_LEN = 200
UNTIED = dataclasses.replace(
    TINY_LLAMA, tied=False, attention_bias=True, mlp_bias=True, vocab_size=66
)


def placed(mesh: jax.sharding.Mesh, dtype: str) -> Weights:
    has_scales = dtype in QUANTIZED
    params = init_params(UNTIED, 0, "float32" if has_scales else dtype)
    weights: Weights = jax.tree.map(
        lambda spec, leaf: jax.device_put(
            leaf, named_sharding(spec.axes, spec.shape, mesh)
        ),
        kept_as(param_specs(UNTIED), dtype),
        quantized(UNTIED, params, dtype) if has_scales else params,
        is_leaf=is_spec,
    )
    return weights


def bytes_on_one_device(tree: Any) -> int:
    shards = [leaf.addressable_shards for leaf in jax.tree.leaves(tree)]
    return sum(shard[0].data.nbytes for shard in shards)


@pytest.mark.parametrize(
    ("shape", "dtype", "slots"),
    [
        ((1, 1, 1), "float32", 4),
        ((1, 4, 1), "float16", 4),
        ((1, 2, 2), "float32", 4),
        ((1, 2, 2), "bfloat16", 5),
        ((2, 1, 2), "float32", 6),
        ((1, 1, 4), "float32", 4),
        ((1, 1, 1), "int8", 4),
        ((1, 2, 2), "int8", 4),
        ((1, 1, 4), "int8", 4),
        ((1, 2, 2), FP8, 4),
    ],
)
def test_the_plan_is_what_is_allocated(
    shape: tuple[int, int, int], dtype: str, slots: int
) -> None:
    devices = jax.devices()[: shape[0] * shape[1] * shape[2]]
    mesh = make_mesh(shape, ("dp", "fsdp", "mp"), devices)
    engine = EngineConfig(slots=slots, max_len=MAX_LEN)
    params = placed(mesh, dtype)
    fns = transformer_fns(UNTIED, MAX_LEN)
    state = build_steps(fns, params, engine, mesh).init()()
    specs = leaves(kept_as(param_specs(UNTIED), dtype))
    plan = plan_memory("tiny", specs, fns, engine, (mesh, dtype))
    assert plan.weights_bytes_per_device == bytes_on_one_device(params)
    assert plan.cache_bytes_per_device == bytes_on_one_device(state.cache)
    floats = jax.tree.leaves(init_params(UNTIED, 0))
    assert plan.num_parameters == sum(leaf.size for leaf in floats)
    assert (plan.model, plan.num_devices, plan.slots) == ("tiny", len(devices), slots)
    assert (plan.max_length, plan.dtype) == (MAX_LEN, dtype)


def test_every_lane_has_its_own_cache_and_room_to_work_in() -> None:
    mesh = make_mesh((1, 1, 1), ("dp", "fsdp", "mp"), jax.devices()[:1])
    fns = transformer_fns(UNTIED, MAX_LEN)
    specs = leaves(kept_as(param_specs(UNTIED), "bfloat16"))
    one, two = (
        plan_memory(
            "tiny",
            specs,
            fns,
            EngineConfig(slots=4, lanes=lanes, max_len=MAX_LEN),
            (mesh, "bfloat16"),
        )
        for lanes in (1, 2)
    )
    assert one.working_bytes_per_device > 0
    assert two.working_bytes_per_device == 2 * one.working_bytes_per_device
    assert two.cache_bytes_per_device == 2 * one.cache_bytes_per_device
    assert two.weights_bytes_per_device == one.weights_bytes_per_device
    assert (one.slots, two.slots) == (4, 8)


def test_the_plan_names_what_is_held_more_than_once() -> None:
    engine = EngineConfig(slots=4, max_len=MAX_LEN)

    def replicated(shape: tuple[int, int, int]) -> tuple[str, ...]:
        devices = jax.devices()[: shape[0] * shape[1] * shape[2]]
        mesh = make_mesh(shape, ("dp", "fsdp", "mp"), devices)
        fns = transformer_fns(UNTIED, MAX_LEN)
        specs = leaves(param_specs(UNTIED))
        place = (mesh, "float32")
        return plan_memory("tiny", specs, fns, engine, place).replicated

    assert replicated((1, 1, 1)) == replicated((4, 1, 1)) == ()
    assert "layers.1.mlp_norm" in replicated((1, 4, 1))
    assert "embedding" not in replicated((1, 4, 1))
    assert "embedding" in replicated((1, 1, 4))
    assert "layers.1.qkv" not in replicated((1, 2, 2))
    assert "layers.1.qkv_bias" in replicated((1, 2, 2))  # cut in two of four


def test_the_plan_names_a_size_that_does_not_divide_once_for_all_layers() -> None:
    specs = leaves(param_specs(UNTIED))
    engine = EngineConfig(slots=4, max_len=MAX_LEN)
    mesh = make_mesh((1, 1, 4), ("dp", "fsdp", "mp"), jax.devices()[:4])
    fns = transformer_fns(UNTIED, MAX_LEN)
    plan = plan_memory("tiny", specs, fns, engine, (mesh, "float32"))
    assert plan.undivided == (
        "embedding (66 over 4)",
        "layers.*.qkv (2 over 4)",
        "layers.*.qkv_bias (2 over 4)",
        "layers.*.out (2 over 4)",
        "head (66 over 4)",
    )


def test_the_plan_counts_weights_that_a_step_puts_together() -> None:
    """A Flax class, whose chunks have one length, on rows along two axes."""
    mesh = make_mesh((2, 2, 1), ("dp", "fsdp", "mp"), jax.devices()[:4])
    engine = EngineConfig(slots=4, max_len=MAX_LEN, row_parts=4, chunk=32)
    ours = transformer_fns(UNTIED, MAX_LEN)
    theirs = ours._replace(chunk=32)
    specs, place = leaves(param_specs(UNTIED)), (mesh, "float32")
    params = jax.tree.leaves(placed(mesh, "float32"))
    cut = [leaf for leaf in params if not leaf.sharding.is_fully_replicated]
    plan = plan_memory("tiny", specs, theirs, engine, place)
    assert plan.working_bytes_per_device == sum(leaf.nbytes for leaf in cut) > 0
    plan = plan_memory("tiny", specs, ours, engine, place)
    assert plan.working_bytes_per_device == 0
