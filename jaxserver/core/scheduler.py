"""What the engine does next, decided from plain values alone.

`plan` looks at a state and says one dispatch; `absorb` tells the state what came of it.
A state is one lane's, with all who wait for any of them. With whole-row pages a slot is
a page of the pool, and the row of the same number.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence

from jaxserver.core.chunks import (
    chunk_seconds,
    first_piece,
    moving_mean,
    with_chunk_time,
)
from jaxserver.core.config import EngineConfig
from jaxserver.core.page_cache import PageCache
from jaxserver.core.schedule import (
    Chunk,
    DecodePlan,
    Outcome,
    Plan,
    PrefillPlan,
    QueuedRequest,
    RunningRequest,
    SchedulerState,
    Seated,
)
from jaxserver.core.seating import admit, make_room, replaced, store

MAX_ATTEMPTS = 2
"""A request is not tried again after so many dispatches with it have failed."""
SHORT_PROMPT = 2
"""Longest chunks that a short prompt has at most."""
PATIENCE = 2
"""Times as long as one of a long prompt, a chunk of a short one may take.

Cut into shorter ones, which take more a token, it would be waited for longer in all.
Who reads along gets a token between any two prompts all the same.
"""


def empty(engine: EngineConfig) -> SchedulerState:
    """Nobody has come, and every page is free."""
    return SchedulerState(cache=PageCache.empty(engine.num_pages, engine.page_size))


def submit(state: SchedulerState, request: QueuedRequest) -> SchedulerState:
    """Puts a request at the end of the queue."""
    return dataclasses.replace(state, waiting=(*state.waiting, request))


def release(
    state: SchedulerState,
    engine: EngineConfig,
    request_ids: Iterable[int],
    kept: Mapping[int, int] | None = None,
) -> SchedulerState:
    """Forgets requests that finished or are not wanted any more; frees their slots.

    Args:
        state: What there is.
        engine: The sizes.
        request_ids: Those to forget; unknown ones are no matter.
        kept: How many tokens of an answer count, where those are not all of it.
    """
    gone, kept = frozenset(request_ids), kept or {}
    cache = state.cache
    for running in state.running:
        request_id = running.request.request_id
        if request_id in gone:
            cache = store(cache, engine, running, kept.get(request_id))
            cache = cache.leave(running.pages)
    return _without(dataclasses.replace(state, cache=cache), gone)


def absorb(
    state: SchedulerState, engine: EngineConfig, plan: Plan, outcome: Outcome
) -> SchedulerState:
    """Takes in what a dispatch did; requests released meanwhile are no matter."""
    state = _read(state, plan, outcome)
    if isinstance(plan, PrefillPlan):
        state = _store_chunks(state, engine, plan, outcome)
    state = _forget(state, outcome.unsound & outcome.finished)
    state = release(state, engine, outcome.finished)
    if isinstance(plan, PrefillPlan) and not plan.is_scored:
        known, depth = state.chunk_seconds, _depth(engine, plan)
        times = with_chunk_time(known, depth, plan.time, outcome.seconds)
        return dataclasses.replace(state, chunk_seconds=times)
    if not outcome.steps:
        return state
    mean = moving_mean(state.step_seconds, outcome.seconds / outcome.steps)
    return dataclasses.replace(state, step_seconds=mean)


def lose(
    state: SchedulerState,
    engine: EngineConfig,
    failed: Iterable[int],
    lost: Iterable[int] = (),
) -> tuple[SchedulerState, tuple[int, ...]]:
    """Begins anew after a dispatch that failed and took the cache with it.

    Everybody who ran waits again, from the tokens that are known; where a token's bits
    depend on how it was run, from the prompt.

    Args:
        state: What there was.
        engine: The sizes.
        failed: Requests that have been tried in vain: that were in the dispatch.
        lost: Requests in other dispatches whose outcomes nobody will read.

    Returns:
        The state, and the requests that have been tried often enough.
    """
    failed = frozenset(failed)
    ran = {running.request.request_id for running in state.running}
    mine = ran | failed | set(lost)
    anew = []
    for request in state.requests:
        if request.unread and request.request_id not in mine:
            anew.append(request)  # another lane's outcome is still to come
            continue
        tokens = request.tokens
        if engine.chunk is not None:
            tokens = tokens[: request.prompt_length]
        anew.append(
            dataclasses.replace(
                request,
                tokens=tokens,
                num_drawn=request.num_drawn - (len(request.tokens) - len(tokens)),
                unread=0,
                ahead=0,
                attempts=request.attempts + (request.request_id in failed),
            )
        )
    anew.sort(key=lambda request: request.request_id)
    over = tuple(r.request_id for r in anew if r.attempts >= MAX_ATTEMPTS)
    waiting = tuple(r for r in anew if r.request_id not in over)
    cache = empty(engine).cache
    return dataclasses.replace(state, cache=cache, waiting=waiting, running=()), over


def expired(requests: Iterable[QueuedRequest], now: float) -> tuple[int, ...]:
    """Those whose deadline has passed."""
    return tuple(
        r.request_id for r in requests if r.deadline is not None and r.deadline <= now
    )


def plan(
    state: SchedulerState,
    engine: EngineConfig,
    now: float,
    others: Sequence[SchedulerState] = (),
) -> tuple[Plan | None, SchedulerState]:
    """Admits who fits, then picks one dispatch; None when there is nothing to do.

    Prefill and decode take turns while both have work, so that neither a long prompt
    stops running answers nor the answers keep a prompt waiting. Then only one token is
    decoded at a time: the more answers run, the less a token costs. The last chunk of a
    prompt needs no turn of its own where it and the one before it are short enough.

    Args:
        state: A lane, with all who wait.
        engine: The sizes.
        now: The time.
        others: The lanes beside it, which may take who waits instead.
    """
    can_decode = any(r.is_decoding for r in state.running)
    # What a seat was promised is there as long as nothing runs before its prefill.
    seated = admit(state, engine, now, others)
    has_prompt = not all(r.is_decoding for r in seated.running)
    prefill = _plan_prefill(seated, engine)
    if prefill is not None:
        stalled = _stalled_after(state, engine, prefill) if can_decode else 0.0
        is_rest = all(chunk.is_last and chunk.seat is None for chunk in prefill.chunks)
        is_short = is_rest and stalled <= engine.prefill_seconds
        if not can_decode or not state.stalled_seconds or is_short:
            seated = dataclasses.replace(seated, stalled_seconds=stalled)
            return prefill, _dispatched(seated, prefill)
    decode, state = _plan_decode(state, engine, has_prompt=has_prompt)
    if decode is not None:
        state = dataclasses.replace(state, stalled_seconds=0.0)
        return decode, _dispatched(state, decode)
    return None, state


def _stalled_after(
    state: SchedulerState, engine: EngineConfig, plan: PrefillPlan
) -> float:
    """How long answers stand still by then; what is not known takes all there is."""
    seconds = chunk_seconds(state.chunk_seconds, _depth(engine, plan), plan.time)
    if plan.is_scored or not seconds:
        seconds = engine.prefill_seconds
    return state.stalled_seconds + seconds


def _plan_prefill(state: SchedulerState, engine: EngineConfig) -> PrefillPlan | None:
    unfinished = [r for r in state.running if not r.is_decoding]
    if not unfinished:
        return None
    together = unfinished[: engine.prefill_rows]
    longest = _longest_chunk(state, engine, together)
    if any(running.request.scored for running in together):
        time = engine.score_length or longest
        return PrefillPlan(tuple(_chunk(r, time) for r in together), time)
    needed = min(longest, max(r.wanted - r.prefilled for r in together))
    if engine.chunk is None:
        needed = first_piece(needed, engine.prefill_lengths, engine.call_tokens)
    chunks = tuple(_chunk(r, needed) for r in together)
    time = next(length for length in engine.prefill_lengths if length >= needed)
    return PrefillPlan(chunks, time)


def _chunk(running: RunningRequest, longest: int) -> Chunk:
    tokens, start = running.request.tokens, running.prefilled
    end = min(start + longest, running.wanted)
    targets = None
    if running.request.scored:
        targets = tokens[start + 1 : min(end + 1, running.request.prompt_length)]
    return Chunk(
        request_id=running.request.request_id,
        slot=running.slot,
        start=start,
        tokens=tokens[start:end],
        is_last=end == running.wanted,
        pages=running.pages,
        seat=None if running.is_begun else Seated(tokens[:start], running.copy),
        targets=targets,
    )


def _depth(engine: EngineConfig, plan: PrefillPlan) -> int:
    """What comes before the tokens of the row that has the most, in longest chunks."""
    return max(chunk.start for chunk in plan.chunks) // engine.prefill_lengths[-1]


def _longest_chunk(
    state: SchedulerState, engine: EngineConfig, together: Sequence[RunningRequest]
) -> int:
    """As long as may be, but for answers that would stand still meanwhile."""
    lengths, times = engine.prefill_lengths, state.chunk_seconds
    streams = any(r.is_decoding and r.request.streaming for r in state.running)
    if engine.chunk is not None or not streams:
        return lengths[-1]
    depth = max(r.prefilled for r in together) // lengths[-1]
    missing = max(r.wanted - r.found for r in together)
    longest = engine.prefill_seconds
    if missing <= SHORT_PROMPT * lengths[-1]:
        longest *= PATIENCE
    fitting = [n for n in lengths if chunk_seconds(times, depth, n) <= longest]
    return max(fitting, default=lengths[0])


def _plan_decode(
    state: SchedulerState, engine: EngineConfig, *, has_prompt: bool
) -> tuple[DecodePlan | None, SchedulerState]:
    num_tokens = 1 if has_prompt else _block(state, engine)
    if not engine.has_whole_rows:
        state = make_room(state, engine, num_tokens)
    decoding = [r for r in state.running if r.is_decoding]
    if not decoding:
        return None, state
    highest = max(r.slot for r in decoding)
    rows = next(rung for rung in engine.decode_ladder if rung > highest)
    requests = {r.slot: r.request.request_id for r in decoding}
    pages = {r.slot: r.pages for r in decoding}
    return DecodePlan(requests, rows, num_tokens, pages), state


def _block(state: SchedulerState, engine: EngineConfig) -> int:
    """How many tokens to decode: few where somebody waits or reads along.

    Answers that stood still for a prompt get one token first, if anybody reads along.
    Only one is decoded as well behind a prompt that is still being run: whoever comes
    meanwhile would wait for the whole block.
    """
    decoding = [r for r in state.running if r.is_decoding]
    if any(r.stored < r.wanted for r in decoding):
        return 1
    streams = any(r.request.streaming for r in decoding)
    if not state.waiting and not streams:
        return engine.max_stream_tokens
    if streams and state.stalled_seconds:
        return 1
    step_seconds = state.step_seconds or engine.block_seconds
    fitting = math.floor(engine.block_seconds / step_seconds)
    return max(1, min(engine.max_stream_tokens, fitting))


def _dispatched(state: SchedulerState, plan: Plan) -> SchedulerState:
    """Counts what a dispatch will bring at most."""
    ahead, ends = _ahead(plan), {}
    if isinstance(plan, PrefillPlan):
        ends = {c.request_id: c.start + c.length for c in plan.chunks}
    counted = []
    for running in state.running:
        request = running.request
        request_id = request.request_id
        if request_id in ahead:
            more = dataclasses.replace(
                request,
                unread=request.unread + 1,
                ahead=request.ahead + ahead[request_id],
            )
            end = ends.get(request_id, running.prefilled)
            running = dataclasses.replace(
                running, request=more, prefilled=end, is_begun=True
            )
        counted.append(running)
    return dataclasses.replace(state, running=tuple(counted))


def _read(state: SchedulerState, plan: Plan, outcome: Outcome) -> SchedulerState:
    """Takes in the tokens of a dispatch, wherever its requests are by now."""
    ahead = _ahead(plan)
    is_prefill = isinstance(plan, PrefillPlan)
    known = {}
    for request in state.requests:
        request_id = request.request_id
        if request_id not in ahead:
            continue
        drawn = outcome.drawn.get(request_id, ())
        known[request_id] = dataclasses.replace(
            request,
            tokens=(*request.tokens, *drawn),
            num_drawn=request.num_drawn + len(drawn),
            unread=request.unread - 1,
            ahead=request.ahead - ahead[request_id],
            # A prefill chooses a token after the prompt's last chunk alone.
            scored=request.scored and not (is_prefill and ahead[request_id]),
        )
    return dataclasses.replace(
        state,
        running=tuple(
            dataclasses.replace(r, request=known.get(r.request.request_id, r.request))
            for r in state.running
        ),
        waiting=tuple(known.get(r.request_id, r) for r in state.waiting),
    )


def _ahead(plan: Plan) -> dict[int, int]:
    """How many tokens a dispatch chooses for each request at most."""
    if isinstance(plan, DecodePlan):
        return dict.fromkeys(plan.request_ids, plan.num_tokens)
    return {chunk.request_id: int(chunk.is_last) for chunk in plan.chunks}


def _store_chunks(
    state: SchedulerState, engine: EngineConfig, plan: PrefillPlan, outcome: Outcome
) -> SchedulerState:
    """Others may take what a prefill is known to have written."""
    chunks = {c.request_id: c for c in plan.chunks}
    for running in state.running:
        chunk = chunks.get(running.request.request_id)
        if chunk is None or running.request.request_id in outcome.unsound:
            continue
        end = chunk.start + chunk.length
        if (
            chunk.pages == running.pages[: len(chunk.pages)]
            and end <= running.prefilled
        ):
            read = dataclasses.replace(running, stored=max(running.stored, end))
            cache = store(state.cache, engine, read)
            state = replaced(dataclasses.replace(state, cache=cache), read)
    return state


def _forget(state: SchedulerState, unsound: frozenset[int]) -> SchedulerState:
    """Lets nobody have what is no number."""
    cache = state.cache
    for running in state.running:
        if running.request.request_id in unsound:
            cache = cache.leave(running.pages, is_sound=False)
    return _without(dataclasses.replace(state, cache=cache), unsound)


def _without(state: SchedulerState, gone: frozenset[int]) -> SchedulerState:
    return dataclasses.replace(
        state,
        waiting=tuple(r for r in state.waiting if r.request_id not in gone),
        running=tuple(r for r in state.running if r.request.request_id not in gone),
    )
