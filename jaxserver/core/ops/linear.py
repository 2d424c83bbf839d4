"""Linear maps whose weights lie `[out, in]` and are contracted on their last axis.

That is the one orientation in which a row's bits do not depend on how many rows are
multiplied beside it, from `MIN_CALL_TOKENS` to `MAX_CALL_TOKENS` of them.
"""

from typing import NamedTuple, TypeAlias

import chex
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Shaped

from jaxserver.core.config import MIN_CALL_TOKENS
from jaxserver.core.ops.fp8 import Fp8Weight
from jaxserver.core.ops.int8_product import int8_product
from jaxserver.core.ops.one_of import OneOf, with_one
from jaxserver.core.ops.quantize import Int8Weight
from jaxserver.core.ops.widen import widen
from jaxserver.core.sharding import constrain
from jaxserver.ports.model import Axes

Weight: TypeAlias = Float[Array, "*out_and_in"] | Int8Weight[Array] | Fp8Weight[Array]
"""Of one product, `[*out *in]`."""
Multiplied: TypeAlias = Weight | OneOf
"""The same, or one of several."""


class Products(NamedTuple):
    """Where products are computed, and by what.

    Attributes:
        mesh: Where the weights lie.
        kernel: See `int8_product`.
        tokens: How many rows of an array are tokens, or None if all: those behind them
            are padding, which products of floats need and those of int8 leave out.
    """

    mesh: Mesh | None = None
    kernel: str | None = None
    tokens: int | None = None


ON_ONE_DEVICE = Products()


def linear(
    x: Float[Array, "tokens *in"],
    weight: Multiplied,
    bias: Float[Array, "*out"] | None = None,
    products: Products = ON_ONE_DEVICE,
) -> Float[Array, "tokens *out"]:
    """`x @ weight.T + bias` in float32, for any number of axes of input and output."""
    chex.assert_axis_dimension_gteq(x, 0, MIN_CALL_TOKENS)
    flat = x.reshape(x.shape[0], -1)
    if isinstance(weight, Int8Weight | Fp8Weight):
        out, y = weight.scale.shape, _scaled_product(flat, weight, products)
    else:
        out = weight.shape[: len(weight.shape) - x.ndim + 1]
        y = _product(flat, weight)
    if bias is not None:
        y = y + bias.reshape(1, -1).astype(y.dtype)
    return y.reshape(x.shape[0], *out)


def _scaled_product(
    x: Float[Array, "tokens in"],
    weight: Int8Weight[Array] | Fp8Weight[Array],
    products: Products,
) -> Float[Array, "tokens out"]:
    if isinstance(weight, Int8Weight) and x.dtype == jnp.float32:
        is_cut = products.mesh is not None and products.mesh.size > 1
        some, kernel = x[: products.tokens], products.kernel
        y = int8_product(some, weight, kernel, is_cut=is_cut)
        return pad_tokens(y, x.shape[0])
    return _product(x, weight.values) * weight.scale.reshape(1, -1)


def _product(
    x: Float[Array, "tokens in"], weight: Shaped[Array, "*out_and_in"] | OneOf
) -> Float[Array, "tokens out"]:
    def multiply(weight: Shaped[Array, "*out_and_in"]) -> Float[Array, "tokens out"]:
        flat = weight.reshape(-1, x.shape[1])
        if flat.dtype != x.dtype:
            flat = widen(lambda kept: kept.astype(x.dtype), flat, x[0, 0])
        product: Array = jax.lax.dot_general(
            x, flat, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32
        )
        return product

    return with_one(weight, multiply)


def read_rows(
    table: Weight, tokens: Int[Array, " tokens"], dtype: str = "float32"
) -> Float[Array, "tokens embed"]:
    """Some rows of a table."""
    if isinstance(table, Int8Weight | Fp8Weight):
        # Of floats in 8 bits the compiler would widen the whole table first (CPU).
        kept = jax.lax.bitcast_convert_type(table.values, jnp.int8)
        bits = kept.at[tokens].get(mode="clip")
        values = jax.lax.bitcast_convert_type(bits, table.values.dtype)
        scale = table.scale.at[tokens].get(mode="clip")[:, None]
        return (values.astype(jnp.float32) * scale).astype(dtype)

    def of_floats(table: Float[Array, "vocab embed"]) -> Float[Array, "tokens embed"]:
        return table.at[tokens].get(mode="clip").astype(dtype)

    if table.dtype == dtype:
        return of_floats(table)
    return widen(of_floats, table, tokens[0])


def linear_on(
    products: Products,
    axes: Axes,
    x: Float[Array, "tokens *in"],
    weight: Multiplied,
    bias: Float[Array, "*out"] | None = None,
) -> Float[Array, "tokens *out"]:
    """`linear` as one product on every mesh, whatever lies before and behind it.

    Each device multiplies its part of the weight with all tokens, and partial sums are
    added up: a token's bits do not depend on how many there are.

    Args:
        products: Where the weight lies, what multiplies, and how many tokens.
        axes: Of the weight.
        x: Tokens, which are put where they are needed.
        weight: `[*out *in]`.
        bias: Of the shape of the output.
    """
    mesh = products.mesh
    num_out = len(axes) - x.ndim + 1
    x = constrain(x, (None, *axes[num_out:]), mesh)
    y = linear(x, weight, bias, products)
    return constrain(y, (None, *axes[:num_out]), mesh)


def pad_tokens(
    x: Float[Array, "tokens *rest"], least: int = MIN_CALL_TOKENS
) -> Float[Array, "padded *rest"]:
    """Zero rows appended until there are at least `least`."""
    spare = max(0, least - x.shape[0])
    return jnp.pad(x, ((0, spare), *((0, 0),) * (x.ndim - 1)))
