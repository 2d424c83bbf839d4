"""What stands in for weights while they are read, so that steps are run meanwhile."""

import math
import mmap
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from jaxserver.ports.model import Params


def zeros_like(shapes: Params) -> Params:
    """Zeros that all lie in the same memory, which the system need not have.

    Args:
        shapes: With their shardings.
    """
    leaves = jax.tree.leaves(shapes)
    nothing: Any = mmap.mmap(-1, max(_num_bytes(leaf) for leaf in leaves) or 1)
    zeros = np.frombuffer(nothing, np.uint8)

    def stand_in(leaf: jax.ShapeDtypeStruct) -> Array:
        part = zeros[: _num_bytes(leaf)].view(leaf.dtype).reshape(leaf.shape)
        placed: Array = jax.device_put(part, leaf.sharding)
        return placed

    return jax.tree.map(stand_in, shapes)


def _num_bytes(leaf: jax.ShapeDtypeStruct) -> int:
    num_bytes: int = math.prod(leaf.shape) * leaf.dtype.itemsize
    return num_bytes
