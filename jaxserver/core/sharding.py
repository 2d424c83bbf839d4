"""The device mesh, and which axis of an array lies along which axis of the mesh.

The only module that writes a PartitionSpec.
"""

import math
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from jaxserver.ports.errors import InvalidConfig
from jaxserver.ports.model import Axes, Axis

MESH_AXES: Mapping[str, tuple[str, ...]] = {
    "batch": ("dp", "fsdp"),
    "pages": ("dp", "fsdp"),
    "embed": ("fsdp",),
    "heads": ("mp",),
    "kv_heads": ("mp",),
    "mlp": ("mp",),
    "vocab": ("mp",),
}
WEIGHT_AXES: Axis = ("fsdp", "mp")
"""The axes that weights are cut along; along `dp` there are only copies."""


def make_mesh(
    shape: Sequence[int], names: Sequence[str], devices: Sequence[jax.Device]
) -> Mesh:
    """Arranges the first devices; one -1 in the shape takes all that are left.

    Raises:
        InvalidConfig: The shape needs more devices than there are, or has a -1 and does
            not divide them, or leaves a process without a device.
    """
    known = math.prod(size for size in shape if size != -1)
    rest, too_many = divmod(len(devices), known)
    sizes = tuple(rest if size == -1 else size for size in shape)
    needed = math.prod(sizes)
    if not 0 < needed <= len(devices) or (-1 in shape and too_many):
        got = f"{tuple(shape)} for {len(devices)} devices"
        allowed = "a product of at most the devices, which divides them beside a -1"
        raise InvalidConfig("mesh_axes_shape", got, allowed)
    idle = {d.process_index for d in devices[needed:]}
    idle -= {d.process_index for d in devices[:needed]}
    if idle:
        got = f"{tuple(shape)}, which has no device of process {min(idle)},"
        allowed = f"a product for all of the {len(devices)} devices"
        raise InvalidConfig("mesh_axes_shape", got, allowed)
    grid = np.asarray(devices[:needed], dtype=object).reshape(sizes)
    return Mesh(grid, tuple(names), axis_types=(AxisType.Auto,) * len(sizes))


def partition_spec(axes: Axes, shape: Sequence[int], mesh: Mesh) -> PartitionSpec:
    """Where an array of this shape lies; an axis that does not divide is replicated."""
    return PartitionSpec(*(names or None for names in _places(axes, shape, mesh)))


def _places(
    axes: Axes, shape: Sequence[int], mesh: Mesh
) -> tuple[tuple[str, ...], ...]:
    def place(axis: Axis | None, size: int) -> tuple[str, ...]:
        parts = num_devices(axis, mesh)
        return mesh_axes(axis) if parts > 1 and size % parts == 0 else ()

    return tuple(place(a, n) for a, n in zip(axes, shape, strict=True))


def mesh_axes(axis: Axis | None) -> tuple[str, ...]:
    """The axes of the mesh along which a dimension lies."""
    if axis is None or isinstance(axis, tuple):
        return axis or ()
    return MESH_AXES.get(axis, (axis,))


def num_devices(axis: Axis | None, mesh: Mesh) -> int:
    """Over how many devices a dimension of this axis is spread where it divides."""
    return math.prod(mesh.shape[name] for name in mesh_axes(axis))


def undivided(axes: Axes, shape: Sequence[int], mesh: Mesh) -> tuple[str, ...]:
    """The dimensions that are whole because they do not divide, in words."""
    pairs = [(n, num_devices(a, mesh)) for a, n in zip(axes, shape, strict=True)]
    return tuple(f"{size} over {parts}" for size, parts in pairs if size % parts)


def num_parts(axes: Axes, shape: Sequence[int], mesh: Mesh) -> int:
    """Into how many pieces the mesh cuts an array of this shape."""
    places = _places(axes, shape, mesh)
    return math.prod(mesh.shape[name] for names in places for name in names)


def named_sharding(axes: Axes, shape: Sequence[int], mesh: Mesh) -> NamedSharding:
    """`partition_spec` on its mesh."""
    return NamedSharding(mesh, partition_spec(axes, shape, mesh))


def gathered(sharding: NamedSharding) -> NamedSharding:
    """The same without the axes that rows lie along, where rows lie along two.

    XLA's partitioner mixes up the devices of such rows in a product with a weight that
    is cut along one of their axes, and gives some rows the numbers of others: OPT on a
    mesh of (2, 2, 2) does it (JAX 0.10.2).
    """
    mesh, rows = sharding.mesh, MESH_AXES["batch"]
    if sum(mesh.shape[name] > 1 for name in rows) < 2:
        return sharding
    along = [mesh_axes(names) for names in sharding.spec]
    kept = [tuple(name for name in names if name not in rows) for names in along]
    return NamedSharding(mesh, PartitionSpec(*(names or None for names in kept)))


def num_gathered_parts(axes: Axes, shape: Sequence[int], mesh: Mesh) -> int:
    """Into how many pieces an array is cut while a step with `gathered` runs."""
    spec = gathered(named_sharding(axes, shape, mesh)).spec
    return math.prod(mesh.shape[name] for axis in spec for name in mesh_axes(axis))


def one_row_a_device(mesh: Mesh) -> NamedSharding:
    """The first axis over all devices, whatever they are for."""
    return NamedSharding(mesh, PartitionSpec(mesh.axis_names))


def replicated(mesh: Mesh) -> NamedSharding:
    """Whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def constrain(x: Array, axes: Axes, mesh: Mesh | None) -> Array:
    """Has the compiler lay an array out as said; as it likes where there is no mesh."""
    if mesh is None:
        return x
    laid: Array = jax.lax.with_sharding_constraint(
        x, named_sharding(axes, x.shape, mesh)
    )
    return laid
