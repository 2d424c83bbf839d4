"""How much memory a model takes, from its shapes alone."""

import functools
import math
import re
from collections.abc import Iterable, Sequence

import jax
from jax.sharding import Mesh

from jaxserver.core.config import EngineConfig
from jaxserver.core.params import ParamSpec
from jaxserver.core.sharding import (
    WEIGHT_AXES,
    num_devices,
    num_gathered_parts,
    num_parts,
    undivided,
)
from jaxserver.ports.memory import MemoryPlan
from jaxserver.ports.model import ModelFns


def plan_memory(
    model: str,
    specs: Iterable[ParamSpec],
    fns: ModelFns,
    engine: EngineConfig,
    place: tuple[Mesh, str],
    computed: str = "float32",
) -> MemoryPlan:
    """Counts weights and cache per device, as they will be placed.

    Args:
        model: What to call it.
        specs: Its weights.
        fns: Its functions.
        engine: The sizes.
        place: The devices, and what the weights are kept as.
        computed: What they are multiplied in.
    """
    mesh, dtype = place
    specs = list(specs)
    parts = [num_parts(spec.axes, spec.shape, mesh) for spec in specs]
    counts = [
        math.prod(spec.shape) // part for spec, part in zip(specs, parts, strict=True)
    ]
    return MemoryPlan(
        model=model,
        num_parameters=sum(math.prod(s.shape) for s in specs if not s.is_derived),
        num_devices=mesh.size,
        slots=engine.all_slots,
        max_length=engine.max_len,
        dtype=dtype,
        weights_bytes_per_device=sum(
            count * jax.numpy.dtype(spec.dtype or dtype).itemsize
            for spec, count in zip(specs, counts, strict=True)
        ),
        cache_bytes_per_device=engine.lanes * _cache_bytes(fns, engine.num_pages, mesh),
        working_bytes_per_device=engine.lanes
        * _widened_bytes(specs, counts, dtype, computed)
        + _gathered_bytes(specs, fns, mesh, dtype),
        replicated=tuple(
            spec.path
            for spec, part in zip(specs, parts, strict=True)
            if part < num_devices(WEIGHT_AXES, mesh)
        ),
        undivided=_undivided(specs, mesh),
    )


def _undivided(specs: Iterable[ParamSpec], mesh: Mesh) -> tuple[str, ...]:
    """Each once, however many layers have it."""
    found = [
        f"{re.sub(r'[0-9]+', '*', spec.path)} ({', '.join(sizes)})"
        for spec in specs
        if (sizes := undivided(spec.axes, spec.shape, mesh))
    ]
    return tuple(dict.fromkeys(found))


def _widened_bytes(
    specs: Sequence[ParamSpec], counts: Sequence[int], dtype: str, computed: str
) -> int:
    """Of the one weight that is widened at a time; in float32 int8 ones are not.

    See `ops.widen` and `ops.linear`.
    """
    wide = jax.numpy.dtype(computed).itemsize

    def is_widened(spec: ParamSpec) -> bool:
        kept = jax.numpy.dtype(spec.dtype or dtype)
        is_float = jax.numpy.issubdtype(kept, jax.numpy.floating)
        return bool((is_float or computed != "float32") and kept.itemsize < wide)

    pairs = zip(specs, counts, strict=True)
    return max((count for spec, count in pairs if is_widened(spec)), default=0) * wide


def _gathered_bytes(
    specs: Iterable[ParamSpec], fns: ModelFns, mesh: Mesh, dtype: str
) -> int:
    """Of the weights that a step puts together from several devices.

    See `sharding.gathered`; our own model needs no such thing.
    """
    if fns.chunk is None:
        return 0
    total = 0
    for spec in specs:
        parts = num_gathered_parts(spec.axes, spec.shape, mesh)
        if parts < num_parts(spec.axes, spec.shape, mesh):
            itemsize = jax.numpy.dtype(spec.dtype or dtype).itemsize
            total += math.prod(spec.shape) // parts * itemsize
    return total


def _cache_bytes(fns: ModelFns, num_pages: int, mesh: Mesh) -> int:
    leaves = jax.tree.leaves(
        jax.eval_shape(functools.partial(fns.init_cache, num_pages=num_pages))
    )
    return sum(
        leaf.size
        * leaf.dtype.itemsize
        // num_parts(fns.cache_axes(leaf.shape), leaf.shape, mesh)
        for leaf in leaves
    )
