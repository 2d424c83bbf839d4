"""The one description of a model's weights: shapes, axes, and what they are called."""

import dataclasses
from typing import Any, Generic, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxserver.core.config import ModelConfig
from jaxserver.core.ops.mlp import MlpParams
from jaxserver.ports.model import Axes

Leaf = TypeVar("Leaf")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ParamSpec:
    """One weight, before it exists.

    Attributes:
        path: Its place in the tree, as in `layers.3.mlp.down`.
        axes: Logical axis of each dimension.
        init_scale: Standard deviation of random weights; 0 makes them all ones.
    """

    path: str
    shape: tuple[int, ...]
    axes: Axes
    init_scale: float = 0.02


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LayerParams(Generic[Leaf]):
    """One transformer block; a bias is None where the model has none.

    Query, key and value projections lie together, key-value head by key-value head:
    first the head's group of queries, then its key, then its value.
    """

    attention_norm: Leaf
    qkv: Leaf
    qkv_bias: Leaf | None
    out: Leaf
    out_bias: Leaf | None
    mlp_norm: Leaf
    mlp: MlpParams[Leaf]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TransformerParams(Generic[Leaf]):
    """All weights; `head` is None where it is the embedding."""

    embedding: Leaf
    layers: tuple[LayerParams[Leaf], ...]
    norm: Leaf
    head: Leaf | None


Specs: TypeAlias = TransformerParams[ParamSpec]
Weights: TypeAlias = TransformerParams[Array]


def param_specs(config: ModelConfig) -> Specs:
    """The tree of every weight's `ParamSpec`."""
    embed, vocab = config.embed, config.vocab_size
    head_axes: Axes = ("vocab", "embed")
    head = ParamSpec(path="head", shape=(vocab, embed), axes=head_axes)
    return TransformerParams(
        embedding=ParamSpec(path="embedding", shape=(vocab, embed), axes=head_axes),
        layers=tuple(_layer_specs(config, i) for i in range(config.num_layers)),
        norm=ParamSpec(path="norm", shape=(embed,), axes=(None,), init_scale=0.0),
        head=None if config.tied else head,
    )


def leaves(specs: Any) -> list[ParamSpec]:
    """The descriptions in a tree of them, in order."""
    return jax.tree.leaves(specs, is_leaf=lambda leaf: isinstance(leaf, ParamSpec))


def _layer_specs(config: ModelConfig, index: int) -> LayerParams[ParamSpec]:
    embed, mlp = config.embed, config.mlp
    kv_heads, head_dim, groups = config.num_kv_heads, config.head_dim, config.groups
    attention_bias, mlp_bias = config.attention_bias, config.mlp_bias
    here = f"layers.{index}"

    def spec(name: str, shape: tuple[int, ...], axes: Axes) -> ParamSpec:
        return ParamSpec(path=f"{here}.{name}", shape=shape, axes=axes)

    def norm(name: str) -> ParamSpec:
        return ParamSpec(
            path=f"{here}.{name}", shape=(embed,), axes=(None,), init_scale=0.0
        )

    qkv = (kv_heads, groups + 2, head_dim)
    qkv_axes: Axes = ("kv_heads", None, None)
    out_axes: Axes = ("embed", "kv_heads", None, None)
    return LayerParams(
        attention_norm=norm("attention_norm"),
        qkv=spec("qkv", (*qkv, embed), (*qkv_axes, "embed")),
        qkv_bias=spec("qkv_bias", qkv, qkv_axes) if attention_bias else None,
        out=spec("out", (embed, kv_heads, groups, head_dim), out_axes),
        out_bias=spec("out_bias", (embed,), (None,)) if attention_bias else None,
        mlp_norm=norm("mlp_norm"),
        mlp=MlpParams(
            gate_up=spec("mlp.gate_up", (2, mlp, embed), (None, "mlp", "embed")),
            down=spec("mlp.down", (embed, mlp), ("embed", "mlp")),
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
