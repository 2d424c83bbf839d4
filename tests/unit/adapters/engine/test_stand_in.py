import jax
import numpy as np
import psutil

from jaxserver.adapters.engine.stand_in import zeros_like
from jaxserver.core.sharding import make_mesh, replicated

AXES = ("dp", "fsdp", "mp")


def shapes_on(devices: list[jax.Device]) -> dict[str, jax.ShapeDtypeStruct]:
    whole = replicated(make_mesh((1, 1, len(devices)), AXES, devices))
    kinds = {"a": ((8, 3), "float32"), "b": ((2**26,), "int8"), "c": ((0, 2), "int32")}
    return {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=whole)
        for name, (shape, dtype) in kinds.items()
    }


def test_all_stand_ins_are_the_same_zeros_and_take_no_memory() -> None:
    shapes = shapes_on(jax.devices()[:1])
    before = psutil.Process().memory_info().rss
    zeros = zeros_like(shapes)
    # Before they are read: a system may then give them pages.
    taken = psutil.Process().memory_info().rss - before
    assert taken < 2**25
    assert zeros["a"].unsafe_buffer_pointer() == zeros["b"].unsafe_buffer_pointer()
    for name, leaf in zeros.items():
        assert (leaf.shape, leaf.dtype) == (shapes[name].shape, shapes[name].dtype)
        assert leaf.sharding == shapes[name].sharding
        assert not np.asarray(leaf).any()


def test_they_lie_on_every_device_of_a_mesh() -> None:
    shapes = shapes_on(jax.devices()[:2])
    for name, leaf in zeros_like(shapes).items():
        assert leaf.sharding == shapes[name].sharding
        assert not np.asarray(leaf).any()
