"""Who gets pages, who gives them up, and what is kept of them for others."""

import dataclasses
import math
from collections.abc import Sequence

from jaxserver.core.config import EngineConfig
from jaxserver.core.lane_choice import goes_elsewhere, shared_prefix
from jaxserver.core.page_cache import PageCache
from jaxserver.core.prefix_tree import Tokens, common_length
from jaxserver.core.schedule import QueuedRequest, RunningRequest, SchedulerState


def admit(
    state: SchedulerState,
    engine: EngineConfig,
    now: float,
    others: Sequence[SchedulerState] = (),
) -> SchedulerState:
    """Gives slots to as many as can be prefilled in the next dispatch, in order.

    Who comes first does not go past who is before him, so that everybody gets there;
    nor does anybody while he is about to get a slot of one of the other lanes.
    """
    while state.waiting:
        unfinished = sum(not r.is_decoding for r in state.running)
        first = min(state.waiting, key=lambda r: _rank(r, engine, now))
        is_full = len(state.running) == engine.slots
        if is_full or first.unread or unfinished == engine.prefill_rows:
            break
        if goes_elsewhere(first, state, others, engine):
            break
        seated = _seat(state, engine, first)
        if seated is None:
            break
        state = seated
    return state


def _rank(request: QueuedRequest, engine: EngineConfig, now: float) -> tuple[int, int]:
    """Waiting makes a request more urgent, step by step; equals go in order."""
    waited = math.floor((now - request.queued_seconds) / engine.ageing_seconds)
    return request.priority - max(0, waited), request.request_id


def _seat(
    state: SchedulerState, engine: EngineConfig, request: QueuedRequest
) -> SchedulerState | None:
    """Admits one request; None where it has to wait for pages."""
    prefix = shared_prefix(request, engine)
    if _comes_in_a_moment(state, engine, prefix):
        return None
    length = min(len(request.tokens) + engine.max_stream_tokens, request.limit)
    found = state.cache.seat(
        prefix,
        engine.pages_for(length),
        below=_first_pages(state, engine),
        grid=engine.chunk or 1,
    )
    if found is None:
        return None
    seat, cache = found
    taken = {running.slot for running in state.running}
    free = next(slot for slot in range(engine.slots) if slot not in taken)
    admitted = RunningRequest(
        request=request,
        slot=seat.pages[0] if engine.has_whole_rows else free,
        pages=seat.pages,
        wanted=len(request.tokens),
        found=seat.held,
        prefilled=seat.held,
        stored=seat.held,
        copy=seat.copy,
    )
    return dataclasses.replace(
        state,
        cache=cache,
        running=(*state.running, admitted),
        waiting=tuple(r for r in state.waiting if r is not request),
        num_hits=state.num_hits + bool(seat.held),
    )


def _comes_in_a_moment(
    state: SchedulerState, engine: EngineConfig, prefix: tuple[int, ...]
) -> bool:
    """Whether somebody who runs is about to store much of what is wanted."""
    if not prefix:
        return False
    least = state.cache.tree.match(prefix).length + engine.prefill_lengths[0]
    return any(
        running.stored < running.wanted
        and common_length(running.request.tokens, prefix) >= least
        for running in state.running
    )


def _first_pages(state: SchedulerState, engine: EngineConfig) -> int:
    """How many pages a row may choose from; low rows keep decode steps small."""
    if not engine.has_whole_rows:
        return engine.num_pages
    return next(rung for rung in engine.decode_ladder if rung > len(state.running))


def found(
    state: SchedulerState, engine: EngineConfig, tokens: Tokens
) -> tuple[tuple[int, ...], int, SchedulerState]:
    """Pages that hold a beginning of some tokens, and how long it is.

    What running requests have made counts as well, and is kept for others from now on.
    """
    cache = state.cache
    for running in state.running:
        cache = store(cache, engine, running)
    match = cache.tree.match(tokens)
    return match.pages, match.length, dataclasses.replace(state, cache=cache)


def given(
    state: SchedulerState, engine: EngineConfig, tokens: Tokens
) -> tuple[tuple[int, ...], SchedulerState] | None:
    """Pages that are about to hold some tokens; None where there is no room."""
    pages_needed = engine.pages_for(len(tokens))
    seated = state.cache.seat((), pages_needed, below=engine.num_pages, grid=1)
    if seated is None or not engine.shares_prefixes:
        return None
    seat, cache = seated
    cache = cache.store(tokens, seat.pages).leave(seat.pages)
    return seat.pages, dataclasses.replace(state, cache=cache)


def make_room(
    state: SchedulerState, engine: EngineConfig, num_tokens: int
) -> SchedulerState:
    """Gives every row that decodes the pages for a block, the oldest request first.

    When pages run out, the youngest request gives up its own.
    """
    for running in sorted(state.running, key=_arrival):
        if not running.is_decoding or running not in state.running:
            continue
        request = running.request
        held = len(request.tokens) + request.ahead
        needed = engine.pages_for(min(held + num_tokens - 1, request.limit))
        while running in state.running:
            grown = state.cache.grow(running.pages, needed, engine.num_pages)
            if grown is not None:
                pages, cache = grown
                larger = dataclasses.replace(running, pages=pages)
                state = replaced(dataclasses.replace(state, cache=cache), larger)
                break
            state = _preempt(state, engine, max(state.running, key=_arrival))
    return state


def _arrival(running: RunningRequest) -> int:
    return running.request.request_id


def _preempt(
    state: SchedulerState, engine: EngineConfig, running: RunningRequest
) -> SchedulerState:
    """Sends a request back to wait with what is known of its answer."""
    cache = store(state.cache, engine, running).leave(running.pages)
    rest = tuple(r for r in state.running if r is not running)
    return dataclasses.replace(
        state,
        cache=cache,
        running=rest,
        waiting=(running.request, *state.waiting),
        num_preempted=state.num_preempted + 1,
    )


def replaced(state: SchedulerState, running: RunningRequest) -> SchedulerState:
    """The state with another value for a request that runs."""
    request_id = running.request.request_id
    return dataclasses.replace(
        state,
        running=tuple(
            running if r.request.request_id == request_id else r for r in state.running
        ),
    )


def store(
    cache: PageCache,
    engine: EngineConfig,
    running: RunningRequest,
    kept: int | None = None,
) -> PageCache:
    """Keeps what is known to be in a row's pages.

    The last token's keys and values are still missing. Where a token's bits depend on
    how it was run, only whole chunks of the prompt are kept.

    Args:
        cache: All pages.
        engine: The sizes.
        running: The row.
        kept: How many tokens of the answer count, where that is not all of them.
    """
    request, length = running.request, running.stored
    if not engine.shares_prefixes:
        return cache
    if engine.chunk is not None:
        length = length // engine.chunk * engine.chunk
    elif running.stored == running.wanted:
        length = max(length, len(request.tokens) - 1)
    if kept is not None:
        length = min(length, request.prompt_length + kept)
    return cache.store(request.tokens[:length], running.pages)
