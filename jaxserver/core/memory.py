"""How much memory a model takes, from its shapes alone."""

import math

import jax
from jax.sharding import Mesh

from jaxserver.core.config import EngineConfig, ModelConfig
from jaxserver.core.kv_cache import KV_AXES, cache_bytes, whole_row_page
from jaxserver.core.params import ParamSpec, param_specs
from jaxserver.core.sharding import num_parts
from jaxserver.ports.memory import MemoryPlan


def plan_memory(
    model: str, config: ModelConfig, engine: EngineConfig, mesh: Mesh, dtype: str
) -> MemoryPlan:
    """Counts weights and cache per device, as they will be placed.

    Args:
        model: What to call it.
        config: The model.
        engine: The sizes.
        mesh: The devices.
        dtype: What the weights are kept as.
    """
    specs = jax.tree.leaves(
        param_specs(config), is_leaf=lambda leaf: isinstance(leaf, ParamSpec)
    )
    itemsize = jax.numpy.dtype(dtype).itemsize
    counts = [math.prod(spec.shape) for spec in specs]
    parts = [num_parts(spec.axes, spec.shape, mesh) for spec in specs]
    weights = sum(
        count // part * itemsize for count, part in zip(counts, parts, strict=True)
    )
    page_size = whole_row_page(engine.max_len)
    pages = (engine.slots, config.num_kv_heads, page_size, config.head_dim)
    cache = cache_bytes(config, engine.slots, page_size)
    return MemoryPlan(
        model=model,
        num_parameters=sum(counts),
        num_devices=mesh.size,
        slots=engine.slots,
        max_length=engine.max_len,
        dtype=dtype,
        weights_bytes_per_device=weights,
        cache_bytes_per_device=cache // num_parts(KV_AXES, pages, mesh),
        replicated=tuple(
            spec.path
            for spec, part in zip(specs, parts, strict=True)
            if part == 1 and mesh.size > 1
        ),
    )
