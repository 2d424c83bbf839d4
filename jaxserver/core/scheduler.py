"""What the engine does next, decided from plain values alone.

`plan` looks at a state and says one dispatch; `absorb` tells the state what came of it.
With whole-row pages a slot is a page of the pool, and the row of the same number.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from jaxserver.core.config import EngineConfig
from jaxserver.core.pages import PagePool


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class QueuedRequest:
    """A request as far as the scheduler needs to know it.

    Attributes:
        streaming: Somebody reads along.
    """

    request_id: int
    prompt_length: int
    streaming: bool


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RunningRequest:
    """A request in its slot.

    Attributes:
        prefilled: Tokens of the prompt that have been dispatched.
    """

    request: QueuedRequest
    slot: int
    prefilled: int = 0

    @property
    def is_decoding(self) -> bool:
        return self.prefilled == self.request.prompt_length


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerState:
    """All requests that are not finished, in order of arrival.

    Attributes:
        step_seconds: How long a decode step took lately; 0 before the first.
        decoded_last: The last dispatch was a decode block.
    """

    pool: PagePool
    waiting: tuple[QueuedRequest, ...] = ()
    running: tuple[RunningRequest, ...] = ()
    step_seconds: float = 0.0
    decoded_last: bool = True


class Chunk(NamedTuple):
    """The next piece of one prompt to prefill."""

    request_id: int
    slot: int
    start: int
    length: int
    is_last: bool


class PrefillPlan(NamedTuple):
    """Chunks to run together, padded to `time` tokens."""

    chunks: tuple[Chunk, ...]
    time: int


class DecodePlan(NamedTuple):
    """A block of decode steps over the slots below `rows`.

    Attributes:
        requests: Which request is in which slot.
    """

    requests: Mapping[int, int]
    rows: int
    num_steps: int


class Outcome(NamedTuple):
    """What a dispatch did.

    Attributes:
        finished: Requests that ended.
        steps: Decode steps run; 0 for a prefill.
        seconds: How long it took.
    """

    finished: frozenset[int]
    steps: int
    seconds: float


def submit(state: SchedulerState, request: QueuedRequest) -> SchedulerState:
    """Puts a request at the end of the queue."""
    return dataclasses.replace(state, waiting=(*state.waiting, request))


def release(state: SchedulerState, request_ids: Iterable[int]) -> SchedulerState:
    """Forgets requests that finished or are not wanted any more; frees their slots."""
    gone = frozenset(request_ids)
    pool = state.pool
    for running in state.running:
        if running.request.request_id in gone:
            pool = pool.release(running.slot)
    return dataclasses.replace(
        state,
        pool=pool,
        waiting=tuple(r for r in state.waiting if r.request_id not in gone),
        running=tuple(r for r in state.running if r.request.request_id not in gone),
    )


def absorb(state: SchedulerState, outcome: Outcome) -> SchedulerState:
    """Takes in what a dispatch did; requests released meanwhile are no matter."""
    state = release(state, outcome.finished)
    if outcome.steps == 0:
        return state
    step_seconds = outcome.seconds / outcome.steps
    if state.step_seconds:
        step_seconds = 0.5 * (state.step_seconds + step_seconds)
    return dataclasses.replace(state, step_seconds=step_seconds)


def plan(
    state: SchedulerState, engine: EngineConfig
) -> tuple[PrefillPlan | DecodePlan | None, SchedulerState]:
    """Admits who fits, then picks one dispatch; None when there is nothing to do.

    Prefill and decode take turns while both have work, so that neither a long prompt
    stops running answers nor the answers keep a prompt waiting.
    """
    state = _admit(state)
    prefill = _plan_prefill(state, engine)
    decode = _plan_decode(state, engine)
    if prefill is not None and (state.decoded_last or decode is None):
        return prefill, _dispatched(state, prefill)
    if decode is not None:
        return decode, dataclasses.replace(state, decoded_last=True)
    return None, state


def _admit(state: SchedulerState) -> SchedulerState:
    """First come, first served, each into the lowest free slot."""
    pool, running = state.pool, list(state.running)
    count = min(pool.num_free, len(state.waiting))
    for request in state.waiting[:count]:
        slot, pool = pool.take()
        running.append(RunningRequest(request=request, slot=slot))
    return dataclasses.replace(
        state, pool=pool, running=tuple(running), waiting=state.waiting[count:]
    )


def _plan_prefill(state: SchedulerState, engine: EngineConfig) -> PrefillPlan | None:
    unfinished = [r for r in state.running if not r.is_decoding]
    if not unfinished:
        return None
    longest = engine.prefill_lengths[-1]
    chunks = []
    for running in unfinished[: engine.prefill_rows]:
        left = running.request.prompt_length - running.prefilled
        chunks.append(
            Chunk(
                request_id=running.request.request_id,
                slot=running.slot,
                start=running.prefilled,
                length=min(left, longest),
                is_last=left <= longest,
            )
        )
    needed = max(chunk.length for chunk in chunks)
    time = next(length for length in engine.prefill_lengths if length >= needed)
    return PrefillPlan(tuple(chunks), time)


def _dispatched(state: SchedulerState, prefill: PrefillPlan) -> SchedulerState:
    ends = {chunk.request_id: chunk.start + chunk.length for chunk in prefill.chunks}
    running = tuple(
        dataclasses.replace(r, prefilled=ends.get(r.request.request_id, r.prefilled))
        for r in state.running
    )
    return dataclasses.replace(state, running=running, decoded_last=False)


def _plan_decode(state: SchedulerState, engine: EngineConfig) -> DecodePlan | None:
    decoding = [r for r in state.running if r.is_decoding]
    if not decoding:
        return None
    highest = max(r.slot for r in decoding)
    rows = next(rung for rung in engine.decode_ladder if rung > highest)
    is_hurried = (
        bool(state.waiting)
        or len(decoding) < len(state.running)
        or any(r.request.streaming for r in decoding)
    )
    num_steps = engine.max_stream_tokens
    if is_hurried:
        step_seconds = state.step_seconds or engine.block_seconds
        fitting = math.floor(engine.block_seconds / step_seconds)
        num_steps = max(1, min(num_steps, fitting))
    requests = {r.slot: r.request.request_id for r in decoding}
    return DecodePlan(requests, rows, num_steps)
