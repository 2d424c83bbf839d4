import dataclasses
import math
import weakref
from collections.abc import Iterable, Mapping
from typing import Any

import chex
import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxserver.adapters.checkpoints.safetensors import open_safetensors
from jaxserver.core.config import ModelConfig
from jaxserver.core.loading import (
    check_shapes,
    halves_apart,
    load_params,
    read_config,
    shapes_of,
)
from jaxserver.core.ops import quantize
from jaxserver.core.ops.fp8 import QUANTIZED
from jaxserver.core.params import init_params, kept_as, param_specs
from jaxserver.core.partition_rules import Rules
from jaxserver.core.sharding import make_mesh
from jaxserver.ports.errors import BrokenCheckpoint
from jaxserver.ports.tensors import Checkpoint
from tests.numerics.llama_files import NAMES, VARIANTS
from tests.tiny import TINY_LLAMA, quantized

HostArray = np.ndarray[Any, np.dtype[Any]]
AXES = ("dp", "fsdp", "mp")
FLOAT32 = ("float32", "float32")


class DictTensors:
    """A `TensorSource` over a mapping."""

    def __init__(self, tensors: Mapping[str, HostArray]) -> None:
        self._tensors = tensors

    def names(self) -> Iterable[str]:
        return self._tensors

    def shape(self, name: str) -> tuple[int, ...]:
        shape: tuple[int, ...] = self._tensors[name].shape
        return shape

    def read(self, name: str) -> HostArray:
        return self._tensors[name]


def checkpoint_of(tensors: Mapping[str, HostArray]) -> Checkpoint:
    return Checkpoint(
        path="here/model.safetensors",
        layout="huggingface",
        config={},
        tensors=DictTensors(tensors),
    )


def load(
    config: ModelConfig,
    checkpoint: Checkpoint,
    dtypes: tuple[str, str] = FLOAT32,
    shape: tuple[int, int, int] = (1, 1, 1),
) -> Any:
    mesh = make_mesh(shape, AXES, jax.devices()[: shape[0] * shape[1] * shape[2]])
    return load_params(config, checkpoint, mesh, dtypes, lambda *_: None)


def test_the_users_rules_say_where_a_weight_goes() -> None:
    checkpoint = checkpoint_of(saved(TINY_LLAMA, init_params(TINY_LLAMA, 0)))
    mesh, nobody = make_mesh((1, 2, 2), AXES, jax.devices()[:4]), lambda *_: None
    rules: Rules = (("mlp.down", (None, ("fsdp", "mp"))), ("qkv", ()))
    params: Any = load_params(TINY_LLAMA, checkpoint, mesh, FLOAT32, nobody, rules)
    assert params.layers[1].mlp.down.addressable_shards[0].data.shape == (32, 12)
    assert params.layers[1].qkv.sharding.is_fully_replicated
    assert not params.layers[1].out.sharding.is_fully_replicated


def saved(config: ModelConfig, params: Any) -> dict[str, HostArray]:
    """The weights in transformers' names and shapes: what `load_params` undoes."""
    outer = {"model.embed_tokens.weight": params.embedding}
    outer["model.norm.weight"] = params.norm
    if params.head is not None:
        outer["lm_head.weight"] = params.head
    tensors: dict[str, Any] = dict(outer)
    for index, layer in enumerate(params.layers):
        here = f"model.layers.{index}"
        flat = (config.embed, config.num_heads * config.head_dim)
        tensors[f"{here}.input_layernorm.weight"] = layer.attention_norm
        tensors[f"{here}.post_attention_layernorm.weight"] = layer.mlp_norm
        tensors[f"{here}.self_attn.o_proj.weight"] = layer.out.reshape(flat)
        tensors[f"{here}.self_attn.o_proj.bias"] = layer.out_bias
        for suffix, qkv in (("weight", layer.qkv), ("bias", layer.qkv_bias)):
            for name, part in zip("qkv", apart(qkv), strict=True):
                tensors[f"{here}.self_attn.{name}_proj.{suffix}"] = part
        tensors[f"{here}.mlp.down_proj.weight"] = layer.mlp.down
        tensors[f"{here}.mlp.down_proj.bias"] = layer.mlp.down_bias
        for number, name in enumerate(("gate_proj", "up_proj")):
            bias = layer.mlp.gate_up_bias
            tensors[f"{here}.mlp.{name}.weight"] = layer.mlp.gate_up[number]
            tensors[f"{here}.mlp.{name}.bias"] = None if bias is None else bias[number]
    return {k: np.asarray(v) for k, v in tensors.items() if v is not None}


def apart(qkv: Any) -> list[Any]:
    """Queries, keys and values, each with all its heads one after the other."""
    if qkv is None:
        return [None] * 3
    return [
        part.reshape(-1, *qkv.shape[3:])
        for part in (qkv[:, :-2], qkv[:, -2], qkv[:, -1])
    ]


@pytest.mark.parametrize("variant", NAMES)
def test_what_is_loaded_and_saved_is_what_was_there(variant: str) -> None:
    checkpoint = open_safetensors(VARIANTS / variant)
    config = read_config(checkpoint)
    found = saved(config, load(config, checkpoint))
    there = load_file(VARIANTS / variant / "model.safetensors")
    chex.assert_trees_all_equal(found, {k: v.astype("f4") for k, v in there.items()})


def test_what_is_saved_and_loaded_is_what_it_was() -> None:
    params = init_params(TINY_LLAMA, 4)
    tensors = saved(TINY_LLAMA, params)
    chex.assert_trees_all_equal(load(TINY_LLAMA, checkpoint_of(tensors)), params)


@pytest.mark.parametrize("shape", [(1, 4, 1), (1, 2, 2), (2, 1, 2), (4, 1, 1)])
def test_on_every_mesh_the_weights_are_the_same(shape: tuple[int, int, int]) -> None:
    params = init_params(TINY_LLAMA, 4)
    checkpoint = checkpoint_of(saved(TINY_LLAMA, params))
    found = load(TINY_LLAMA, checkpoint, shape=shape)
    assert len(found.embedding.sharding.device_set) == 4
    chex.assert_trees_all_equal(jax.tree.map(np.asarray, found), params)


@pytest.mark.parametrize(
    ("rounded", "like"), [("float16", np.float16), ("bfloat16", ml_dtypes.bfloat16)]
)
def test_weights_are_rounded_to_one_type_and_kept_in_another(
    rounded: str, like: Any
) -> None:
    params = init_params(TINY_LLAMA, 4)
    checkpoint = checkpoint_of(saved(TINY_LLAMA, params))
    found = load(TINY_LLAMA, checkpoint, (rounded, "float32"))
    expected = jax.tree.map(lambda x: np.asarray(x).astype(like).astype("f4"), params)
    chex.assert_trees_all_equal(jax.tree.map(np.asarray, found), expected)
    kept = load(TINY_LLAMA, checkpoint, (rounded, rounded))
    assert {leaf.dtype for leaf in jax.tree.leaves(kept)} == {np.dtype(like)}


@pytest.mark.parametrize(
    "name",
    [
        "model.embed_tokens.weight",
        "model.layers.1.self_attn.k_proj.weight",
        "model.layers.0.mlp.up_proj.weight",
        "model.layers.0.mlp.down_proj.weight",
    ],
)
def test_a_tensor_of_another_shape_is_named_with_both_shapes(name: str) -> None:
    tensors = saved(TINY_LLAMA, init_params(TINY_LLAMA, 4))
    expected, tensors[name] = tensors[name].shape, tensors[name].T[:-1]
    with pytest.raises(BrokenCheckpoint) as caught:
        load(TINY_LLAMA, checkpoint_of(tensors))
    assert (caught.value.file, caught.value.tensor) == ("here/model.safetensors", name)
    assert caught.value.expected == f"shape {expected}"
    assert caught.value.found == str(tensors[name].shape)


def test_shapes_are_compared_before_anything_is_read() -> None:
    class Unread(DictTensors):
        def read(self, name: str) -> HostArray:
            raise AssertionError(f"{name} was read")

    tensors = Unread(saved(TINY_LLAMA, init_params(TINY_LLAMA, 4)))
    unread = dataclasses.replace(checkpoint_of({}), tensors=tensors)
    check_shapes(TINY_LLAMA, unread)
    wider = dataclasses.replace(TINY_LLAMA, head_dim=2**30)
    with pytest.raises(BrokenCheckpoint, match=r"q_proj.*shape \(4294967296, 32\)"):
        check_shapes(wider, unread)
    endless = dataclasses.replace(TINY_LLAMA, num_layers=2**31 - 1)
    with pytest.raises(BrokenCheckpoint, match="tensors of 2147483647 layers"):
        check_shapes(endless, unread)


@pytest.mark.parametrize("kept", ["float32", "bfloat16", *QUANTIZED])
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 2, 2)])
def test_what_is_said_of_weights_before_is_what_is_then_placed(
    kept: str, shape: tuple[int, int, int]
) -> None:
    tensors = saved(TINY_LLAMA, init_params(TINY_LLAMA, seed=0))
    loaded = load(TINY_LLAMA, checkpoint_of(tensors), ("float32", kept), shape)
    mesh = make_mesh(shape, AXES, jax.devices()[: math.prod(shape)])
    said = shapes_of(kept_as(param_specs(TINY_LLAMA), kept), mesh, kept)

    def compare(leaf: Any, one: jax.ShapeDtypeStruct) -> None:
        assert (leaf.shape, leaf.dtype) == (one.shape, one.dtype)
        assert leaf.sharding == one.sharding

    jax.tree.map(compare, loaded, said)


@pytest.mark.parametrize("numbers", [1, 150, quantize.BLOCK_NUMBERS])
@pytest.mark.parametrize("kept", QUANTIZED)
@pytest.mark.parametrize("variant", NAMES)
def test_weights_of_products_are_kept_in_8_bits_and_all_others_in_float32(
    variant: str, kept: str, numbers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many numbers are quantised together."""
    monkeypatch.setattr(quantize, "BLOCK_NUMBERS", numbers)
    checkpoint = open_safetensors(VARIANTS / variant)
    config = read_config(checkpoint)
    rounded = load(config, checkpoint, ("bfloat16", "float32"))
    found = load(config, checkpoint, ("bfloat16", kept))
    chex.assert_trees_all_equal(found, quantized(config, rounded, kept), strict=True)
    assert found.layers[0].mlp.gate_up.values.dtype == kept
    assert found.norm.dtype == np.float32


def test_each_weight_is_quantised_before_the_next_is_read() -> None:
    tensors = saved(TINY_LLAMA, init_params(TINY_LLAMA, 4))
    alive: list[weakref.ref[HostArray]] = []

    class Watched(DictTensors):
        def read(self, name: str) -> HostArray:
            there = sum(ref() is not None for ref in alive)
            assert there <= len(of_one_weight(name))
            values = super().read(name).copy()
            if values.ndim > 1:  # others are placed as they are, if they lie well
                alive.append(weakref.ref(values))
            return values

    def of_one_weight(name: str) -> tuple[str, ...]:
        groups = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
        return next((g for g in groups if name.split(".")[-2] in g), (name,))

    checkpoint = checkpoint_of(tensors)
    checkpoint = dataclasses.replace(checkpoint, tensors=Watched(tensors))
    load(TINY_LLAMA, checkpoint, ("float32", "int8"))
    assert len(alive) == sum(leaf.ndim > 1 for leaf in tensors.values())
    assert not any(ref() is not None for ref in alive[:-3])


@pytest.mark.parametrize("shape", [(1, 4, 1), (1, 2, 2), (1, 1, 2)])
def test_scales_lie_where_the_outputs_of_their_weights_lie(
    shape: tuple[int, int, int],
) -> None:
    params = init_params(TINY_LLAMA, 4)
    checkpoint = checkpoint_of(saved(TINY_LLAMA, params))
    found = load(TINY_LLAMA, checkpoint, ("float32", "int8"), shape)
    chex.assert_trees_all_equal(
        jax.tree.map(np.asarray, found),
        jax.tree.map(np.asarray, quantized(TINY_LLAMA, params)),
    )
    layer = found.layers[1]
    for weight in (found.embedding, layer.qkv, layer.out, layer.mlp.down):
        whole = tuple(weight.values.sharding.spec) + (None,) * weight.values.ndim
        for leaf in (weight.scale, weight.sums):
            assert tuple(leaf.sharding.spec) == whole[: leaf.ndim]
    parts = jax.tree.leaves(layer.mlp.gate_up)
    sizes = [leaf.addressable_shards[0].data.shape[1] for leaf in parts]
    assert sizes == [TINY_LLAMA.mlp // shape[2]] * 3


def test_the_users_rules_say_where_a_weight_in_int8_and_its_scale_go() -> None:
    checkpoint = checkpoint_of(saved(TINY_LLAMA, init_params(TINY_LLAMA, 0)))
    mesh, nobody = make_mesh((1, 2, 2), AXES, jax.devices()[:4]), lambda *_: None
    rules: Rules = (("mlp.down", (("fsdp", "mp"), None)), ("qkv", ()))
    dtypes = ("float32", "int8")
    params: Any = load_params(TINY_LLAMA, checkpoint, mesh, dtypes, nobody, rules)
    down, qkv = params.layers[1].mlp.down, params.layers[1].qkv
    assert down.values.addressable_shards[0].data.shape == (8, 48)
    assert down.scale.addressable_shards[0].data.shape == (8,)
    assert qkv.values.sharding.is_fully_replicated
    assert qkv.scale.sharding.is_fully_replicated


@pytest.mark.parametrize("kept", ["float32", *QUANTIZED])
def test_progress_counts_the_bytes_that_are_placed(kept: str) -> None:
    heard: list[tuple[str, int, int]] = []
    params = init_params(TINY_LLAMA, 4)
    mesh = make_mesh((1, 1, 1), AXES, jax.devices()[:1])
    checkpoint = checkpoint_of(saved(TINY_LLAMA, params))
    dtypes = ("float32", kept)
    found = load_params(
        TINY_LLAMA, checkpoint, mesh, dtypes, lambda *a: heard.append(a)
    )
    total = sum(leaf.nbytes for leaf in jax.tree.leaves(found))
    assert {(stage, end) for stage, _, end in heard} == {("load", total)}
    done = [done for _, done, _ in heard]
    assert done == sorted(done)
    assert done[-1] == total


def test_pairs_side_by_side_come_half_a_head_apart() -> None:
    side_by_side = np.array([0, 4, 1, 5, 2, 6, 3, 7, 10, 14, 11, 15, 12, 16, 13, 17])
    expected = [*range(8), *range(10, 18)]
    assert halves_apart(side_by_side, 2).tolist() == expected
    columns = np.stack([side_by_side, -side_by_side], axis=1)
    assert halves_apart(columns, 2)[:, 1].tolist() == [-value for value in expected]
