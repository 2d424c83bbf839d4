"""Which of several lanes a request gets its slot in; see `core.lanes`."""

from collections.abc import Sequence
from typing import NamedTuple

from jaxserver.core.config import MIN_CALL_TOKENS, EngineConfig
from jaxserver.core.prefix_tree import Tokens
from jaxserver.core.schedule import QueuedRequest, SchedulerState


class _Fit(NamedTuple):
    """How well a lane suits a request; less is better.

    Attributes:
        missing: Tokens of what may be shared that are not in its cache, where those
            that are there would take a prefill of their own.
        crowd: Requests in its slots, or as many in the others where it is better to
            join them.
        kept: Pages of its cache that somebody may come back to.
    """

    missing: int
    crowd: int
    kept: int


def goes_elsewhere(
    request: QueuedRequest,
    state: SchedulerState,
    others: Sequence[SchedulerState],
    engine: EngineConfig,
) -> bool:
    """Whether another lane should take a request: it has room, and suits it better.

    Where much of the prompt is in a lane's cache, the request waits for it to end what
    it is prefilling.

    Args:
        request: Who waits.
        state: The lane that might take it, with all who wait.
        others: The lanes beside it.
        engine: The sizes of each.
    """
    lanes = (state, *others)
    total = len(state.waiting) + sum(len(lane.running) for lane in lanes)
    own = _fit(request, state, engine, total)
    for other in others:
        fit = _fit(request, other, engine, total)
        unfinished = sum(not r.is_decoding for r in other.running)
        is_free = fit.missing < own.missing or unfinished < engine.prefill_rows
        if len(other.running) < engine.slots and is_free and fit < own:
            return True
    return False


def _fit(
    request: QueuedRequest, lane: SchedulerState, engine: EngineConfig, total: int
) -> _Fit:
    prefix = shared_prefix(request, engine)
    found = lane.cache.tree.match(prefix).length
    least, crowd = engine.prefill_lengths[0], len(lane.running)
    # So few together take little more time than one of them.
    is_joined = total <= min(MIN_CALL_TOKENS, engine.slots)
    return _Fit(
        missing=len(prefix) - (found if found >= least else 0),
        crowd=-crowd if is_joined else crowd,
        kept=lane.cache.tree.num_pages,
    )


def shared_prefix(request: QueuedRequest, engine: EngineConfig) -> Tokens:
    """What a request may take of its prompt from a cache."""
    is_shared = engine.shares_prefixes and not request.scored
    # The last token is run in any case: its logits choose the first of the answer.
    return request.tokens[:-1] if is_shared else ()
