"""Both ways to run a function of arrays, eagerly and compiled, on host arrays."""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import pytest

Transform: TypeAlias = Callable[[Callable[..., Any]], Callable[..., Any]]


def eager(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *arguments: function(*jax.tree.map(jnp.asarray, arguments))


both_ways = pytest.mark.parametrize("transform", [eager, jax.jit], ids=["eager", "jit"])
