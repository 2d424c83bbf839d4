"""A layer that is chosen while a model runs, beside the layer itself."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxserver.core.ops.linear import Products, linear
from jaxserver.core.ops.one_of import OneOf, with_one
from jaxserver.core.params import init_params, layer_at
from tests.numerics.transforms import Transform, both_ways
from tests.tiny import TINY_LLAMA, quantized

pytestmark = [pytest.mark.usefixtures("strict_jax"), both_ways]
CONFIG = dataclasses.replace(
    TINY_LLAMA, num_layers=3, attention_bias=True, mlp_bias=True
)


@pytest.mark.parametrize("tokens", [1, 5])
@pytest.mark.parametrize("kept", ["float32", "bfloat16", "int8", "float8_e4m3fn"])
def test_a_chosen_layers_products_have_the_bits_of_the_layers_own(
    transform: Transform, kept: str, tokens: int
) -> None:
    some = functools.partial(linear, products=Products(tokens=tokens))
    params = init_params(CONFIG, seed=3)
    if kept in ("float32", "bfloat16"):
        params = jax.tree.map(lambda leaf: leaf.astype(kept), params)
    else:
        params = quantized(CONFIG, params, kept)
    x = jax.random.normal(jax.random.key(1), (5, CONFIG.embed))
    wide = jax.random.normal(jax.random.key(2), (5, CONFIG.mlp))

    def products(layer: Any) -> tuple[jax.Array, ...]:
        return (
            some(x, layer.qkv, layer.qkv_bias),
            some(x, layer.mlp.gate_up, layer.mlp.gate_up_bias),
            some(wide, layer.mlp.down, layer.mlp.down_bias),
            layer.attention_norm,
        )

    def chosen(layers: Any, nth: jax.Array) -> tuple[jax.Array, ...]:
        return products(layer_at(layers, nth))

    found = []
    for nth, layer in enumerate(params.layers):
        found.append(transform(chosen)(params.layers, np.int32(nth)))
        own = transform(products)(layer)
        jax.tree.map(np.testing.assert_array_equal, found[-1], own)
    assert not np.array_equal(found[0][0], found[1][0])


def test_one_of_several_is_used_where_it_is_and_has_their_shape(
    transform: Transform,
) -> None:
    arrays = tuple(jnp.full((2, 3), float(nth)) for nth in range(4))

    def last_row(nth: jax.Array) -> jax.Array:
        several = OneOf(arrays, nth)
        assert several.shape == (2, 3)
        return with_one(several, lambda one: one[1] + 1)

    for nth in range(4):
        np.testing.assert_array_equal(transform(last_row)(np.int32(nth)), nth + 1)
    np.testing.assert_array_equal(with_one(arrays[2], lambda one: one + 1), 3)
