"""One of several arrays alike, which is chosen where it is used and nowhere copied."""

import functools
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
from jaxtyping import Array, Int, Shaped

Used = TypeVar("Used")


class OneOf(NamedTuple):
    """Of a loop over layers, say, the weight of the one that is being run.

    Choosing it before would copy it: a product on a CPU reads what lies in one place.
    """

    arrays: tuple[Shaped[Array, "..."], ...]
    nth: Int[Array, ""]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of each."""
        return self.arrays[0].shape


def as_matrix(
    array: Shaped[Array, "..."] | OneOf, columns: int
) -> Shaped[Array, "rows columns"] | OneOf:
    """Its last dimensions become one of that many columns, and the others one of rows.

    A loop that reads an array in another shape than it has is slow (CPU).
    """
    if not isinstance(array, OneOf):
        return array.reshape(-1, columns)
    return OneOf(tuple(one.reshape(-1, columns) for one in array.arrays), array.nth)


def with_one(
    array: Shaped[Array, "..."] | OneOf,
    use: Callable[[Shaped[Array, "..."]], Used],
) -> Used:
    """`use(array)`, traced once, and compiled once for each that it may be."""
    if not isinstance(array, OneOf):
        return use(array)
    traced = jax.jit(use)
    uses = [functools.partial(traced, one) for one in array.arrays]
    used: Used = jax.lax.switch(array.nth, uses)
    return used
