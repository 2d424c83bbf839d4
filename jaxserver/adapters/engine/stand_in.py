"""What stands in for weights while they are read, so that steps are run meanwhile."""

import math
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from jaxserver.ports.model import Params

ALIGNMENT = 64
"""Bytes; a CPU takes what lies so without copying it."""


def zeros_like(shapes: Params) -> Params:
    """Zeros that all lie in the same memory, which is the system's until written to.

    Where a mesh cuts them, parts are copied.

    Args:
        shapes: With their shardings.
    """
    longest = max(map(_num_bytes, jax.tree.leaves(shapes)), default=0)
    room = np.zeros(longest + ALIGNMENT, np.uint8)
    zeros = room[-room.ctypes.data % ALIGNMENT :]

    def stand_in(leaf: Any) -> Array:
        part = zeros[: _num_bytes(leaf)].view(leaf.dtype).reshape(leaf.shape)
        placed: Array = jax.device_put(part, leaf.sharding)
        return placed

    return jax.tree.map(stand_in, shapes)


def _num_bytes(leaf: Any) -> int:
    num_bytes: int = math.prod(leaf.shape) * leaf.dtype.itemsize
    return num_bytes
