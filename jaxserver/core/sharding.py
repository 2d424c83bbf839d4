"""The device mesh, and which axis of an array lies along which axis of the mesh.

The only module that writes a PartitionSpec.
"""

import math
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxserver.ports.errors import InvalidConfig
from jaxserver.ports.model import Axes, LogicalAxis

MESH_AXES: Mapping[LogicalAxis, tuple[str, ...]] = {
    "batch": ("dp", "fsdp"),
    "pages": ("dp", "fsdp"),
    "embed": ("fsdp",),
    "heads": ("mp",),
    "kv_heads": ("mp",),
    "mlp": ("mp",),
    "vocab": ("mp",),
}


def make_mesh(
    shape: Sequence[int], names: Sequence[str], devices: Sequence[jax.Device]
) -> Mesh:
    """Arranges the first devices; one -1 in the shape takes what is left.

    Raises:
        InvalidConfig: The shape needs more devices than there are.
    """
    known = math.prod(size for size in shape if size != -1)
    rest = len(devices) // known
    sizes = tuple(rest if size == -1 else size for size in shape)
    needed = math.prod(sizes)
    if not 0 < needed <= len(devices):
        got = f"{tuple(shape)} for {len(devices)} devices"
        raise InvalidConfig("mesh_axes_shape", got, "a product of at most the devices")
    grid = np.asarray(devices[:needed], dtype=object).reshape(sizes)
    return Mesh(grid, tuple(names), axis_types=(AxisType.Auto,) * len(sizes))


def partition_spec(axes: Axes, shape: Sequence[int], mesh: Mesh) -> PartitionSpec:
    """Where an array of this shape lies; an axis that does not divide is replicated."""
    return PartitionSpec(*(names or None for names in _places(axes, shape, mesh)))


def _places(
    axes: Axes, shape: Sequence[int], mesh: Mesh
) -> tuple[tuple[str, ...], ...]:
    def place(axis: LogicalAxis | None, size: int) -> tuple[str, ...]:
        names = () if axis is None else MESH_AXES[axis]
        parts = math.prod(mesh.shape[name] for name in names)
        return names if parts > 1 and size % parts == 0 else ()

    return tuple(place(a, n) for a, n in zip(axes, shape, strict=True))


def num_parts(axes: Axes, shape: Sequence[int], mesh: Mesh) -> int:
    """Into how many pieces the mesh cuts an array of this shape."""
    places = _places(axes, shape, mesh)
    return math.prod(mesh.shape[name] for names in places for name in names)


def named_sharding(axes: Axes, shape: Sequence[int], mesh: Mesh) -> NamedSharding:
    """`partition_spec` on its mesh."""
    return NamedSharding(mesh, partition_spec(axes, shape, mesh))


def one_row_a_device(mesh: Mesh) -> NamedSharding:
    """The first axis over all devices, whatever they are for."""
    return NamedSharding(mesh, PartitionSpec(mesh.axis_names))


def replicated(mesh: Mesh) -> NamedSharding:
    """Whole on every device."""
    return NamedSharding(mesh, PartitionSpec())
