"""What a server says of itself: its numbers at one moment, and its address."""

from pathlib import Path

import jax
import psutil

from jaxserver.adapters.engine.compiling import COMPILES
from jaxserver.adapters.engine.loop_stats import LoopStats
from jaxserver.adapters.engine.processor import num_cores
from jaxserver.adapters.engine.text import TextEngine, TextStats
from jaxserver.ports.config import ServerConfig
from jaxserver.ports.memory import MemoryPlan
from jaxserver.ports.status import ServerState, StatusSnapshot


def take_snapshot(
    config: ServerConfig,
    state: ServerState,
    *,
    plan: MemoryPlan | None,
    engine: TextEngine | None,
    uptime_seconds: float,
    compiles_at_ready: int,
) -> StatusSnapshot:
    """Gathers the numbers; there is no plan and no engine before they are made."""
    stats = TextStats() if engine is None else engine.stats
    loop = LoopStats() if engine is None else engine.loop.stats
    is_ready = state is ServerState.READY
    return StatusSnapshot(
        model=served_name(config.model),
        config=config.public(),
        state=state,
        devices=tuple(str(device) for device in jax.devices()),
        cores=num_cores(),
        memory={
            "resident": psutil.Process().memory_info().rss,
            "weights": 0 if plan is None else plan.weights_bytes_per_device,
            "cache": 0 if plan is None else plan.cache_bytes_per_device,
        },
        uptime_seconds=uptime_seconds,
        requests_served=stats.requests_served,
        prompts_served=stats.prompts_served,
        tokens_generated=stats.tokens_generated,
        slots_in_use=loop.slots_in_use,
        queue_length=0 if engine is None else engine.queue_length,
        compiles_after_ready=COMPILES.count - compiles_at_ready if is_ready else 0,
        slots=config.slots or 0,
        queued_tokens=loop.queued_tokens,
        pages_total=loop.pages_total,
        pages_used=loop.pages_used,
        pages_cached=loop.pages_cached,
        prefix_hits=loop.prefix_hits,
        preemptions=loop.preemptions,
        drafted_tokens=loop.drafted_tokens,
        accepted_tokens=loop.accepted_tokens,
        failed_dispatches=loop.failed_dispatches,
        unsound_rows=loop.unsound_rows,
    )


def served_name(model: str) -> str:
    """What clients call a model: a file's or folder's own name, without where it is."""
    path = Path(model)
    if path.suffix == ".gguf":
        return path.stem
    return path.resolve().name if path.is_dir() else model


def reachable_host(host: str) -> str:
    """How to write a host that is listened on, so that this machine reaches it."""
    named = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{named}]" if ":" in named else named
