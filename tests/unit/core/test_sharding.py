from unittest import mock

import jax
import pytest
from jax.sharding import PartitionSpec

from jaxserver.core.sharding import (
    constrain,
    gathered,
    make_mesh,
    named_sharding,
    num_devices,
    num_parts,
    partition_spec,
    replicated,
    undivided,
)
from jaxserver.ports.errors import InvalidConfig
from jaxserver.ports.model import Axes

NAMES = ("dp", "fsdp", "mp")


def mesh_of(*shape: int) -> jax.sharding.Mesh:
    return make_mesh(shape, NAMES, jax.devices()[:4])


@pytest.mark.parametrize(
    ("shape", "sizes"),
    [
        ((1, -1, 1), (1, 4, 1)),
        ((-1, 2, 1), (2, 2, 1)),
        ((1, 2, 2), (1, 2, 2)),
        ((4, 1, -1), (4, 1, 1)),
        ((1, 2, 1), (1, 2, 1)),
        ((3, 1, 1), (3, 1, 1)),
    ],
)
def test_one_size_takes_the_devices_that_are_left(
    shape: tuple[int, ...], sizes: tuple[int, ...]
) -> None:
    mesh = mesh_of(*shape)
    assert tuple(mesh.shape.values()) == sizes
    assert tuple(mesh.axis_names) == NAMES


@pytest.mark.parametrize("shape", [(5, 1, 1), (2, 2, 2), (8, -1, 1), (3, -1, 1)])
def test_a_shape_that_does_not_fit_the_devices_is_refused(
    shape: tuple[int, ...],
) -> None:
    with pytest.raises(InvalidConfig, match="mesh_axes_shape") as caught:
        mesh_of(*shape)
    assert caught.value.got == f"{shape} for 4 devices"


def test_a_shape_that_leaves_a_process_without_a_device_is_refused() -> None:
    devices = [mock.Mock(jax.Device, process_index=nth // 2) for nth in range(4)]
    with pytest.raises(InvalidConfig, match="no device of process 1") as caught:
        make_mesh((1, 2, 1), NAMES, devices)
    assert "all of the 4 devices" in str(caught.value)


@pytest.mark.parametrize(
    ("mesh", "axes", "shape", "spec", "parts"),
    [
        ((1, 1, 4), ("vocab", "embed"), (8, 6), (("mp",), None), 4),
        ((1, 2, 2), ("vocab", "embed"), (8, 6), (("mp",), ("fsdp",)), 4),
        ((2, 2, 1), ("batch", None), (8, 6), (("dp", "fsdp"), None), 4),
        ((1, 4, 1), ("vocab", "embed"), (8, 6), (None, None), 1),
        ((1, 2, 2), ("kv_heads", "mlp"), (3, 4), (None, ("mp",)), 2),
        ((4, 1, 1), ("heads", None), (8, 8), (None, None), 1),
        ((1, 2, 2), ("mp", "fsdp"), (8, 6), (("mp",), ("fsdp",)), 4),
        ((1, 2, 2), (None, ("fsdp", "mp")), (6, 8), (None, ("fsdp", "mp")), 4),
        ((1, 2, 2), (("fsdp", "mp"),), (6,), (None,), 1),
    ],
)
def test_an_axis_is_cut_where_it_divides_and_else_replicated(
    mesh: tuple[int, ...],
    axes: Axes,
    shape: tuple[int, ...],
    spec: tuple[tuple[str, ...] | None, ...],
    parts: int,
) -> None:
    assert partition_spec(axes, shape, mesh_of(*mesh)) == PartitionSpec(*spec)
    assert num_parts(axes, shape, mesh_of(*mesh)) == parts


def test_an_array_lies_as_it_was_said() -> None:
    mesh = mesh_of(1, 2, 2)
    array = jax.numpy.zeros((8, 6))
    cut = jax.device_put(array, named_sharding(("vocab", "embed"), (8, 6), mesh))
    assert {shard.data.shape for shard in cut.addressable_shards} == {(4, 3)}
    whole = jax.device_put(array, replicated(mesh))
    assert {shard.data.shape for shard in whole.addressable_shards} == {(8, 6)}


def test_a_dimension_that_does_not_divide_is_named_with_both_numbers() -> None:
    mesh = mesh_of(1, 2, 2)
    assert undivided(("vocab", "embed"), (7, 5), mesh) == ("7 over 2", "5 over 2")
    assert undivided(("vocab", None), (8, 5), mesh) == ()
    assert undivided(("mlp",), (7,), mesh_of(4, 1, 1)) == ()


def test_an_axis_is_spread_over_all_its_axes_of_the_mesh() -> None:
    mesh = mesh_of(2, 1, 2)
    counts = [num_devices(axis, mesh) for axis in ("batch", "mlp", ("dp", "mp"), None)]
    assert counts == [2, 2, 4, 1]


def test_a_function_may_say_where_what_it_makes_lies() -> None:
    x = jax.numpy.zeros((8, 6))
    made = jax.jit(lambda: constrain(x + 1, ("vocab", "embed"), mesh_of(1, 2, 2)))()
    assert {shard.data.shape for shard in made.addressable_shards} == {(4, 3)}
    assert constrain(x, ("vocab", "embed"), None) is x


@pytest.mark.parametrize(
    ("shape", "parts"), [((2, 2, 1), (1, 1)), ((1, 2, 2), (2, 2)), ((4, 1, 1), (1, 1))]
)
def test_a_weight_is_gathered_where_rows_lie_along_two_axes(
    shape: tuple[int, ...], parts: tuple[int, int]
) -> None:
    mesh = mesh_of(*shape)
    found = gathered(named_sharding(("vocab", "embed"), (8, 6), mesh))
    assert found.shard_shape((8, 6)) == (8 // parts[0], 6 // parts[1])
    assert gathered(replicated(mesh)).is_fully_replicated
