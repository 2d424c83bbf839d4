"""Puts a checkpoint's tensors together into a model's weights, one at a time."""

import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import ml_dtypes
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array

from jaxserver.core.config import ModelConfig
from jaxserver.core.families import llama
from jaxserver.core.families.parts import (
    GGUF_OUTER,
    HUGGINGFACE_OUTER,
    OuterParts,
    Part,
    PartTable,
)
from jaxserver.core.ops.fp8 import Fp8Weight, quantize_to_fp8
from jaxserver.core.ops.mlp import MlpParams
from jaxserver.core.ops.quantize import HostArray, Int8Weight, in_blocks, quantize
from jaxserver.core.params import (
    LayerParams,
    ParamSpec,
    TransformerParams,
    Weights,
    is_spec,
    kept_as,
    leaves,
    param_specs,
)
from jaxserver.core.partition_rules import Rules, with_rules
from jaxserver.core.sharding import named_sharding
from jaxserver.ports.errors import BrokenCheckpoint
from jaxserver.ports.model import Params
from jaxserver.ports.progress import Progress
from jaxserver.ports.tensors import Checkpoint

WeightSpec: TypeAlias = ParamSpec | Int8Weight[ParamSpec] | Fp8Weight[ParamSpec]
"""Of what one recipe makes."""
Arrange: TypeAlias = Callable[[list[HostArray], ParamSpec], HostArray]


class Recipe(NamedTuple):
    """How one weight is made.

    Attributes:
        tensors: Names in the file.
        shapes: What each of them must be like.
        arrange: Puts them together in the shape of the spec.
    """

    tensors: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    arrange: Arrange


def read_config(checkpoint: Checkpoint) -> ModelConfig:
    """The model's configuration, in whichever layout it is written down.

    Raises:
        UnsupportedModel: The model, or a setting of it, is not known here.
    """
    if checkpoint.layout == "huggingface":
        return llama.from_huggingface(checkpoint.config)
    names = frozenset(checkpoint.tensors.names())
    factors: tuple[float, ...] = ()
    if "rope_freqs.weight" in names:
        values = np.ravel(checkpoint.tensors.read("rope_freqs.weight"))
        factors = tuple(float(value) for value in values)
    return llama.from_gguf(checkpoint.config, names, factors)


def check_shapes(config: ModelConfig, checkpoint: Checkpoint) -> None:
    """Compares what a configuration needs with what a file says of its tensors.

    After it no size of the configuration is larger than the file has room for.

    Raises:
        BrokenCheckpoint: A tensor is missing or has another shape than expected.
    """
    num_tensors = len(frozenset(checkpoint.tensors.names()))
    if config.num_layers > num_tensors:
        raise BrokenCheckpoint(
            checkpoint.path,
            None,
            expected=f"tensors of {config.num_layers} layers",
            found=f"{num_tensors} tensors",
        )
    recipes = jax.tree.leaves(_recipes(config, checkpoint), is_leaf=_is_recipe)
    for recipe in recipes:
        for name, shape in zip(recipe.tensors, recipe.shapes, strict=True):
            _check_shape(checkpoint, name, checkpoint.tensors.shape(name), shape)


def load_params(
    config: ModelConfig,
    checkpoint: Checkpoint,
    mesh: Mesh,
    dtypes: tuple[str, str],
    progress: Progress,
    rules: Rules = (),
) -> Weights:
    """Reads every weight and places it on its devices.

    Never more than one weight is in host memory besides what has been placed.

    Args:
        config: The model.
        checkpoint: Where the weights are.
        mesh: Where they go.
        dtypes: What they are rounded to, and what they are then kept as; in 8 bits
            each weight is quantised as soon as it is read.
        progress: Hears of the bytes placed, stage `load`.
        rules: How the user wants them to lie.

    Raises:
        BrokenCheckpoint: A tensor is missing or has another shape than expected.
    """
    specs = kept_as(with_rules(param_specs(config), rules), dtypes[1])
    recipes = _recipes(config, checkpoint)
    weights: Weights = _load(specs, recipes, checkpoint, mesh, dtypes, progress)
    return weights


def shapes_of(specs: Any, mesh: Mesh, kept: str) -> Any:
    """What `load_params` will place, before it does.

    Args:
        specs: As they are kept.
        mesh: Where they go.
        kept: What is kept in no type of its own.
    """

    def shape(spec: ParamSpec) -> jax.ShapeDtypeStruct:
        sharding = named_sharding(spec.axes, spec.shape, mesh)
        dtype = _dtype_of(spec, _numpy_dtype(kept))
        return jax.ShapeDtypeStruct(spec.shape, dtype, sharding=sharding)

    return jax.tree.map(shape, specs, is_leaf=is_spec)


def load_tree(
    specs: Any,
    checkpoint: Checkpoint,
    mesh: Mesh,
    dtypes: tuple[str, str],
    progress: Progress,
) -> Params:
    """As `load_params`, for a tree whose tensors are named by their own paths.

    Args:
        specs: A tree of `ParamSpec`.
        checkpoint: Where the weights are, by path.
        mesh: Where they go.
        dtypes: What they are rounded to, and what they are then kept as.
        progress: Hears of the bytes placed, stage `load`.
    """

    def recipe(spec: ParamSpec) -> Recipe:
        return Recipe((spec.path,), (spec.shape,), lambda tensors, spec: tensors[0])

    recipes = jax.tree.map(recipe, specs, is_leaf=is_spec)
    return _load(specs, recipes, checkpoint, mesh, dtypes, progress)


def place_params(
    specs: Any, params: Params, mesh: Mesh, dtypes: tuple[str, str]
) -> Params:
    """As `load_params`, for parameters that are in memory; only floats are rounded."""
    _check_given(specs, params)
    rounded, kept = (_numpy_dtype(name) for name in dtypes)

    def place(spec: ParamSpec, leaf: Any) -> Array:
        is_float = jax.numpy.issubdtype(leaf.dtype, jax.numpy.floating)
        values = leaf.astype(rounded).astype(kept) if is_float else leaf
        return put(values, named_sharding(spec.axes, spec.shape, mesh))

    return jax.tree.map(place, specs, params, is_leaf=is_spec)


def _check_given(specs: Any, params: Params) -> None:
    wanted = {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(spec.shape)
        for path, spec in jax.tree_util.tree_leaves_with_path(specs, is_leaf=is_spec)
    }
    found = {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    for path in sorted(wanted.keys() | found.keys()):
        if wanted.get(path) != found.get(path):
            expected, shape = wanted.get(path), found.get(path)
            raise BrokenCheckpoint(
                "the parameters given",
                path,
                expected=f"shape {expected}" if expected is not None else "no such",
                found=f"shape {shape}" if shape is not None else "none",
            )


def _load(
    specs: Any,
    recipes: Any,
    checkpoint: Checkpoint,
    mesh: Mesh,
    dtypes: tuple[str, str],
    progress: Progress,
) -> Any:
    flat, tree = jax.tree.flatten(specs, is_leaf=_is_weight)
    made_by = jax.tree.leaves(recipes, is_leaf=_is_recipe)
    rounded, kept = (_numpy_dtype(name) for name in dtypes)
    ends = list(itertools.accumulate(_num_bytes(spec, kept) for spec in flat))

    def place(spec: ParamSpec, values: HostArray) -> Array:
        return put(values, named_sharding(spec.axes, spec.shape, mesh))

    def keep(
        spec: WeightSpec, values: HostArray
    ) -> HostArray | Int8Weight[HostArray] | Fp8Weight[HostArray]:
        if isinstance(spec, ParamSpec):
            values = values.astype(rounded, copy=False)
            return values.astype(_dtype_of(spec, kept), copy=False)

        def make(some: HostArray) -> Int8Weight[HostArray] | Fp8Weight[HostArray]:
            some = some.astype(rounded, copy=False)
            if isinstance(spec, Fp8Weight):
                return quantize_to_fp8(some, 1)
            return quantize(some, 1, keeps_rest=spec.values.is_refined)

        return in_blocks(make, values, spec.values.num_out)

    def load(spec: WeightSpec, recipe: Recipe, end: int) -> Any:
        whole = spec if isinstance(spec, ParamSpec) else spec.values
        parts = [
            _read(checkpoint, name, shape)
            for name, shape in zip(recipe.tensors, recipe.shapes, strict=True)
        ]
        # Broken weights may be infinite; that is for who computes with them to say.
        with np.errstate(over="ignore", invalid="ignore"):
            made = keep(spec, recipe.arrange(parts, whole))
        progress("load", end, ends[-1])
        return jax.tree.map(place, spec, made, is_leaf=is_spec)

    loaded = [load(*leaf) for leaf in zip(flat, made_by, ends, strict=True)]
    return jax.tree.unflatten(tree, loaded)


def put(values: HostArray | Array, sharding: NamedSharding) -> Array:
    """Puts each device's part on it, where this process has the device."""
    return jax.make_array_from_callback(
        values.shape, sharding, lambda index: values[index]
    )


def _is_recipe(leaf: Any) -> bool:
    return isinstance(leaf, Recipe)


def _is_weight(leaf: Any) -> bool:
    return isinstance(leaf, ParamSpec | Int8Weight | Fp8Weight)


def _num_bytes(spec: WeightSpec, kept: np.dtype[Any]) -> int:
    return sum(
        math.prod(part.shape) * _dtype_of(part, kept).itemsize for part in leaves(spec)
    )


def _dtype_of(spec: ParamSpec, kept: np.dtype[Any]) -> np.dtype[Any]:
    return kept if spec.dtype is None else _numpy_dtype(spec.dtype)


def _numpy_dtype(name: str) -> np.dtype[Any]:
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


def _read(checkpoint: Checkpoint, name: str, shape: tuple[int, ...]) -> HostArray:
    values = np.asarray(checkpoint.tensors.read(name))
    _check_shape(checkpoint, name, values.shape, shape)
    return values


def _check_shape(
    checkpoint: Checkpoint, name: str, found: tuple[int, ...], shape: tuple[int, ...]
) -> None:
    if tuple(found) != shape:
        raise BrokenCheckpoint(
            checkpoint.path, name, expected=f"shape {shape}", found=f"{tuple(found)}"
        )


def _recipes(
    config: ModelConfig, checkpoint: Checkpoint
) -> TransformerParams[Recipe, Recipe]:
    is_gguf = checkpoint.layout == "gguf"
    outer: OuterParts = GGUF_OUTER if is_gguf else HUGGINGFACE_OUTER
    layer_parts = llama.gguf_parts if is_gguf else llama.huggingface_parts
    shape = (config.vocab_size, config.embed)
    return TransformerParams(
        embedding=_plain(outer.embedding, shape),
        layers=tuple(
            _layer_recipes(config, layer_parts(i)) for i in range(config.num_layers)
        ),
        norm=_plain(outer.norm, (config.embed,)),
        head=None if config.tied else _plain(outer.head, shape),
    )


def _layer_recipes(
    config: ModelConfig, parts: PartTable
) -> LayerParams[Recipe, Recipe]:
    embed, mlp = config.embed, config.mlp
    attended = config.num_heads * config.head_dim
    return LayerParams(
        attention_norm=_plain(parts.attention_norm, (embed,)),
        qkv=_qkv(config, parts.qkv, "weight", (embed,)),
        qkv_bias=_qkv(config, parts.qkv, "bias", ()) if config.attention_bias else None,
        out=_plain(parts.out, (embed, attended)),
        out_bias=_plain(parts.out, (embed,), "bias") if config.attention_bias else None,
        mlp_norm=_plain(parts.mlp_norm, (embed,)),
        mlp=MlpParams(
            gate_up=_stacked(parts.gate_up, (mlp, embed), "weight"),
            down=_plain(parts.down, (embed, mlp)),
            gate_up_bias=_stacked(parts.gate_up, (mlp,), "bias")
            if config.mlp_bias
            else None,
            down_bias=_plain(parts.down, (embed,), "bias") if config.mlp_bias else None,
        ),
    )


def _plain(part: Part, shape: tuple[int, ...], suffix: str = "weight") -> Recipe:
    return Recipe(
        (f"{part.name}.{suffix}",),
        (shape,),
        lambda tensors, spec: tensors[0].reshape(spec.shape),
    )


def _stacked(parts: tuple[Part, Part], shape: tuple[int, ...], suffix: str) -> Recipe:
    return Recipe(
        tuple(f"{part.name}.{suffix}" for part in parts),
        (shape, shape),
        lambda tensors, spec: np.stack(tensors),
    )


def _qkv(
    config: ModelConfig, parts: tuple[Part, ...], suffix: str, rest: tuple[int, ...]
) -> Recipe:
    heads = (config.num_heads, config.num_kv_heads, config.num_kv_heads)
    kv_heads, head_dim = config.num_kv_heads, config.head_dim
    interleaved = [part.interleaved for part in parts]

    def arrange(tensors: list[HostArray], spec: ParamSpec) -> HostArray:
        apart = [
            halves_apart(values, count) if pairs else values
            for values, count, pairs in zip(tensors, heads, interleaved, strict=True)
        ]
        by_head = [values.reshape(kv_heads, -1, head_dim, *rest) for values in apart]
        return np.concatenate(by_head, axis=1)

    return Recipe(
        tuple(f"{part.name}.{suffix}" for part in parts),
        tuple((count * head_dim, *rest) for count in heads),
        arrange,
    )


def halves_apart(values: HostArray, heads: int) -> HostArray:
    """Moves rotated pairs from side by side to half a head apart."""
    by_pair = values.reshape(heads, values.shape[0] // heads // 2, 2, *values.shape[1:])
    return by_pair.swapaxes(1, 2).reshape(values.shape)
