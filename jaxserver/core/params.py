"""The one description of a model's weights: shapes, axes, and what they are called."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Shaped

from jaxserver.core.config import ModelConfig
from jaxserver.core.ops.fp8 import FP8, QUANTIZED, Fp8Weight
from jaxserver.core.ops.linear import Multiplied, Weight
from jaxserver.core.ops.mlp import MlpParams
from jaxserver.core.ops.one_of import OneOf
from jaxserver.core.ops.quantize import Int8Weight
from jaxserver.ports.model import Axes

Leaf = TypeVar("Leaf")
Factor = TypeVar("Factor")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ParamSpec:
    """One weight, before it exists.

    Attributes:
        path: Its place in the tree, as in `layers.3.mlp.down`.
        axes: Logical axis of each dimension.
        init_scale: Standard deviation of random weights; 0 makes them all ones.
        num_out: How many of its dimensions, the first ones, are the output of a
            product; 0 where it is no factor of one.
        is_refined: In int8, what rounding leaves of it is kept as well.
        dtype: What it is kept in; None: in what all are.
        is_derived: It says more of another weight, and is no parameter itself.
    """

    path: str
    shape: tuple[int, ...]
    axes: Axes
    init_scale: float = 0.02
    num_out: int = 0
    is_refined: bool = False
    dtype: str | None = None
    is_derived: bool = False


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LayerParams(Generic[Leaf, Factor]):
    """One transformer block; a bias is None where the model has none.

    Query, key and value projections lie together, key-value head by key-value head:
    first the head's group of queries, then its key, then its value.
    """

    attention_norm: Leaf
    qkv: Factor
    qkv_bias: Leaf | None
    out: Factor
    out_bias: Leaf | None
    mlp_norm: Leaf
    mlp: MlpParams[Leaf, Factor]

    def map_factors(
        self,
        change: Callable[..., Any],
        *others: "LayerParams[Any, Any]",
    ) -> "LayerParams[Leaf, Any]":
        """The same but for `change(factor, *those of others)` of each product."""
        mlps = [other.mlp for other in others]
        mlp = dataclasses.replace(
            self.mlp,
            gate_up=change(self.mlp.gate_up, *(mlp.gate_up for mlp in mlps)),
            down=change(self.mlp.down, *(mlp.down for mlp in mlps)),
        )
        return dataclasses.replace(
            self,
            qkv=change(self.qkv, *(other.qkv for other in others)),
            out=change(self.out, *(other.out for other in others)),
            mlp=mlp,
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TransformerParams(Generic[Leaf, Factor]):
    """All weights; `head` is None where it is the embedding."""

    embedding: Factor
    layers: tuple[LayerParams[Leaf, Factor], ...]
    norm: Leaf
    head: Factor | None


Specs: TypeAlias = TransformerParams[ParamSpec, ParamSpec]
Weights: TypeAlias = TransformerParams[Array, Weight]
Scaled: TypeAlias = Int8Weight[Any] | Fp8Weight[Any]
"""Weights that have something small beside what is multiplied."""


def layer_at(
    layers: Sequence[LayerParams[Array, Weight]], index: Int[Array, ""]
) -> LayerParams[Array, Multiplied]:
    """One of several layers alike, chosen while a model is run.

    What is multiplied is chosen where it is, and so is not copied. All else is small
    and copied here: found anew by every loop that reads it, it would cost more.
    """
    rest = [layer.map_factors(_without_values) for layer in layers]
    mine = jax.lax.switch(index, [functools.partial(lambda x: x, one) for one in rest])
    chosen: LayerParams[Array, Multiplied] = mine.map_factors(
        functools.partial(_with_values, index), *layers
    )
    return chosen


def _without_values(weight: Weight) -> Scaled | None:
    if not isinstance(weight, Int8Weight | Fp8Weight):
        return None
    rest: Scaled = weight
    return dataclasses.replace(rest, values=None)


def _with_values(
    index: Int[Array, ""], rest: Scaled | None, *weights: Weight
) -> Multiplied:
    values = OneOf(tuple(_values(weight) for weight in weights), index)
    return values if rest is None else dataclasses.replace(rest, values=values)


def _values(weight: Weight) -> Shaped[Array, "*out_and_in"]:
    return weight.values if isinstance(weight, Int8Weight | Fp8Weight) else weight


def param_specs(config: ModelConfig) -> Specs:
    """The tree of every weight's `ParamSpec`."""
    embed, vocab = config.embed, config.vocab_size
    head_axes: Axes = ("vocab", "embed")

    def table(path: str, *, is_head: bool) -> ParamSpec:
        shape = (vocab, embed)
        return ParamSpec(
            path=path, shape=shape, axes=head_axes, num_out=1, is_refined=is_head
        )

    return TransformerParams(
        embedding=table("embedding", is_head=config.tied),
        layers=tuple(_layer_specs(config, i) for i in range(config.num_layers)),
        norm=ParamSpec(path="norm", shape=(embed,), axes=(None,), init_scale=0.0),
        head=None if config.tied else table("head", is_head=True),
    )


def kept_as(specs: Any, dtype: str) -> Any:
    """The same weights as they are kept: in 8 bits, factors of products are in parts.

    What is no factor is kept in float32 then.
    """

    def quantized(
        spec: ParamSpec,
    ) -> ParamSpec | Int8Weight[ParamSpec] | Fp8Weight[ParamSpec]:
        if not spec.num_out:
            return dataclasses.replace(spec, dtype="float32")
        of_outputs = functools.partial(
            dataclasses.replace,
            spec,
            shape=spec.shape[: spec.num_out],
            axes=spec.axes[: spec.num_out],
            is_derived=True,
        )
        values = dataclasses.replace(spec, dtype=dtype)
        scale = of_outputs(path=f"{spec.path}.scale", dtype="float32")
        if dtype == FP8:
            return Fp8Weight(values=values, scale=scale)
        sums = of_outputs(path=f"{spec.path}.sums", dtype="int32")
        rest = dataclasses.replace(values, path=f"{spec.path}.rest", is_derived=True)
        return Int8Weight(
            values=values,
            scale=scale,
            sums=sums,
            rest=rest if spec.is_refined else None,
        )

    if dtype not in QUANTIZED:
        return specs
    return jax.tree.map(quantized, specs, is_leaf=is_spec)


def is_spec(leaf: Any) -> bool:
    """For the functions of `jax.tree`, which look into what they do not know."""
    return isinstance(leaf, ParamSpec)


def leaves(specs: Any) -> list[ParamSpec]:
    """The descriptions in a tree of them, in order."""
    return jax.tree.leaves(specs, is_leaf=is_spec)


def _layer_specs(config: ModelConfig, index: int) -> LayerParams[ParamSpec, ParamSpec]:
    embed, mlp = config.embed, config.mlp
    kv_heads, head_dim, groups = config.num_kv_heads, config.head_dim, config.groups
    attention_bias, mlp_bias = config.attention_bias, config.mlp_bias
    here = f"layers.{index}"

    def spec(
        name: str, shape: tuple[int, ...], axes: Axes, num_out: int = 0
    ) -> ParamSpec:
        return ParamSpec(path=f"{here}.{name}", shape=shape, axes=axes, num_out=num_out)

    def norm(name: str) -> ParamSpec:
        return ParamSpec(
            path=f"{here}.{name}", shape=(embed,), axes=(None,), init_scale=0.0
        )

    qkv = (kv_heads, groups + 2, head_dim)
    qkv_axes: Axes = ("kv_heads", None, None)
    out_axes: Axes = ("embed", "kv_heads", None, None)
    return LayerParams(
        attention_norm=norm("attention_norm"),
        qkv=spec("qkv", (*qkv, embed), (*qkv_axes, "embed"), 3),
        qkv_bias=spec("qkv_bias", qkv, qkv_axes) if attention_bias else None,
        out=spec("out", (embed, kv_heads, groups, head_dim), out_axes, 1),
        out_bias=spec("out_bias", (embed,), (None,)) if attention_bias else None,
        mlp_norm=norm("mlp_norm"),
        mlp=MlpParams(
            gate_up=spec("mlp.gate_up", (2, mlp, embed), (None, "mlp", "embed"), 2),
            down=spec("mlp.down", (embed, mlp), ("embed", "mlp"), 1),
            gate_up_bias=spec("mlp.gate_up_bias", (2, mlp), (None, "mlp"))
            if mlp_bias
            else None,
            down_bias=spec("mlp.down_bias", (embed,), (None,)) if mlp_bias else None,
        ),
    )


def init_params(
    config: ModelConfig, seed: int, dtype: jnp.dtype | str = "float32"
) -> Weights:
    """Random weights, for tests and for measuring."""
    rng = np.random.default_rng(seed)

    def init(spec: ParamSpec) -> Array:
        if spec.init_scale == 0:
            return jnp.asarray(np.ones(spec.shape, np.float32), dtype)
        values = rng.standard_normal(spec.shape, np.float32) * spec.init_scale
        return jnp.asarray(values, dtype)

    weights: Weights = jax.tree.map(init, param_specs(config))
    return weights
