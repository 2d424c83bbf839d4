"""The gated MLP (Shazeer 2020, SwiGLU)."""

import dataclasses
from typing import Generic, TypeVar

import jax
from jaxtyping import Array, Float

from jaxserver.core.ops.linear import ON_ONE_DEVICE, Multiplied, Products, linear_on
from jaxserver.ports.model import Axes

Leaf = TypeVar("Leaf")
Factor = TypeVar("Factor")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MlpParams(Generic[Leaf, Factor]):
    """Weights `[2 mlp embed]` and `[embed mlp]`; gate and up lie together.

    Biases are None where the model has none.
    """

    gate_up: Factor
    down: Factor
    gate_up_bias: Leaf | None
    down_bias: Leaf | None


def gated_mlp(
    x: Float[Array, "tokens embed"],
    params: MlpParams[Array, Multiplied],
    products: Products = ON_ONE_DEVICE,
) -> Float[Array, "tokens embed"]:
    """`down(silu(gate(x)) * up(x))`, in float32."""
    up: Axes = (None, "mlp", "embed")
    both = linear_on(products, up, x, params.gate_up, params.gate_up_bias)
    hidden = (jax.nn.silu(both[:, 0]) * both[:, 1]).astype(x.dtype)
    return linear_on(products, ("embed", "mlp"), hidden, params.down, params.down_bias)
