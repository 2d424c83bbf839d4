"""What executables are given, as arrays of the host."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxserver.adapters.engine.requests import TokenRequest
from jaxserver.core import steps
from jaxserver.core.config import EngineConfig
from jaxserver.core.decode import Block
from jaxserver.core.decode_state import MAX_ALL_END_IDS, RowArrays
from jaxserver.core.page_cache import PageCopy
from jaxserver.core.processors import wishes_of
from jaxserver.core.sampling_arrays import sampling_row
from jaxserver.core.schedule import Chunk, DecodePlan, PrefillPlan, Seated
from jaxserver.ports.processors import Processors


def adoption(chunk: Chunk, seat: Seated, engine: EngineConfig) -> steps.Adoption:
    """What a row finds when its request gets a slot."""
    tokens = np.zeros(engine.max_len, np.int32)
    tokens[: len(seat.held)] = seat.held
    page = chunk.pages[0]
    copy = seat.copy or PageCopy(page, page, 0)
    arrays: dict[str, Any] = dict(
        slot=np.int32(chunk.slot),
        tokens=tokens,
        source=np.int32(copy.source),
        target=np.int32(copy.target),
        length=np.int32(copy.length),
    )
    return steps.Adoption(**arrays)


def decode_block(plan: DecodePlan, engine: EngineConfig) -> Block:
    """What a decode block is given."""
    keep = np.zeros(engine.slots, np.bool_)
    keep[list(plan.requests)] = True
    pages = None
    if not engine.has_whole_rows:
        pages = np.zeros((engine.slots, engine.pages_per_row), np.int32)
        for slot, held in plan.pages.items():
            pages[slot, : len(held)] = held
    arrays: dict[str, Any] = dict(
        keep=keep, num_tokens=np.int32(plan.num_tokens), pages=pages
    )
    return Block(**arrays)


def prefill_chunk(
    plan: PrefillPlan,
    requests: Mapping[int, TokenRequest],
    engine: EngineConfig,
    processors: Processors,
) -> steps.PrefillChunk:
    """What a prefill is given, padded in rows and in time."""
    count = engine.prefill_rows
    slots = np.full(count, engine.slots, np.int32)
    pages = np.zeros((count, engine.pages_per_row), np.int32)
    tokens = np.zeros((count, plan.time), np.int32)
    start, length = np.zeros((2, count), np.int32)
    is_last = np.zeros(count, np.bool_)
    targets = np.full_like(tokens, -1) if plan.time == engine.score_length else None
    for row, part in enumerate(plan.chunks):
        tokens[row, : part.length] = part.tokens
        pages[row, : len(part.pages)] = part.pages
        slots[row], start[row] = part.slot, part.start
        length[row], is_last[row] = part.length, part.is_last
        if targets is not None and part.targets is not None:
            targets[row, : len(part.targets)] = part.targets
    asking = [requests[chunk.request_id] for chunk in plan.chunks]
    rows = _stack([row_arrays(one, processors) for one in asking], count)
    arrays: dict[str, Any] = dict(
        slots=slots,
        pages=pages,
        tokens=tokens,
        start=start,
        length=length,
        is_last=is_last,
        targets=targets,
    )
    return steps.PrefillChunk(**arrays, rows=rows)


def _stack(rows: list[RowArrays], count: int) -> RowArrays:
    padded = rows + [rows[0]] * (count - len(rows))
    stacked: RowArrays = jax.tree.map(lambda *leaves: np.stack(leaves), *padded)
    return stacked


def row_arrays(request: TokenRequest, processors: Processors) -> RowArrays:
    """What the device keeps of a request, without a row axis."""
    end_ids = np.full(MAX_ALL_END_IDS, -1, np.int32)
    end_ids[: len(request.end_ids)] = sorted(request.end_ids)
    arrays: dict[str, Any] = dict(
        prompt_length=np.int32(request.held),
        limit=np.int32(request.limit),
        end_ids=end_ids,
    )
    sampling = sampling_row(request.sampling, request.seed, request.choice)
    wishes = wishes_of(processors, request.sampling.logits_processors)
    return RowArrays(**arrays, sampling=sampling, processors=wishes)
