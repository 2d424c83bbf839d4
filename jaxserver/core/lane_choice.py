"""Which of several lanes a request gets its slot in; see `core.lanes`."""

from collections.abc import Sequence
from typing import NamedTuple

from jaxserver.core.chunks import prefill_cost
from jaxserver.core.config import MIN_CALL_TOKENS, EngineConfig
from jaxserver.core.prefix_tree import Tokens
from jaxserver.core.schedule import QueuedRequest, SchedulerState


class _Fit(NamedTuple):
    """How well a lane suits a request; less is better.

    Attributes:
        chunks: Of the prompt, that its cache has not.
        crowd: Requests in its slots, or as many in the others where it is better to
            join them.
        cost: Of the prefills that these take, in tokens; see `prefill_cost`.
        missing: Tokens of what may be shared that its cache has not.
        kept: Pages of its cache that somebody may come back to.
    """

    chunks: int
    crowd: int
    cost: int
    missing: int
    kept: int

    @property
    def work(self) -> tuple[int, int, int]:
        """What the request makes a lane do that is at work already."""
        return self.chunks, self.crowd, self.cost


def goes_elsewhere(
    request: QueuedRequest,
    state: SchedulerState,
    others: Sequence[SchedulerState],
    engine: EngineConfig,
) -> bool:
    """Whether another lane should take a request: it has room, and suits it better.

    One that is prefilling has room as well, where that ends before what its cache has
    of the request could be made again. One that is at work is not waited for where
    this one has no more to do with the request.

    Args:
        request: Who waits.
        state: The lane that might take it, with all who wait.
        others: The lanes beside it.
        engine: The sizes of each.
    """
    total = len(state.waiting) + sum(len(x.running) for x in (state, *others))
    own = _fit(request, state, engine, total)
    for other in others:
        fit = _fit(request, other, engine, total)
        unfinished = [r for r in other.running if not r.is_decoding]
        is_free = len(unfinished) < engine.prefill_rows
        left = sum(r.wanted - r.prefilled for r in unfinished)
        has_room = len(other.running) < engine.slots
        is_better = fit.work < own.work if other.running else fit < own
        if has_room and is_better and (is_free or left < own.missing - fit.missing):
            return True
    return False


def _fit(
    request: QueuedRequest, lane: SchedulerState, engine: EngineConfig, total: int
) -> _Fit:
    prefix, crowd = shared_prefix(request, engine), len(lane.running)
    missing = len(prefix) - lane.cache.tree.match(prefix).length
    # So few together take little more time than one of them.
    is_joined = total <= min(MIN_CALL_TOKENS, engine.slots)
    lengths = engine.prefill_lengths
    return _Fit(
        chunks=-(-missing // lengths[-1]),
        crowd=-crowd if is_joined else crowd,
        cost=prefill_cost(missing, lengths, engine.call_tokens),
        missing=missing,
        kept=lane.cache.tree.num_pages,
    )


def shared_prefix(request: QueuedRequest, engine: EngineConfig) -> Tokens:
    """What a request may take of its prompt from a cache."""
    is_shared = engine.shares_prefixes and not request.scored
    # The last token is run in any case: its logits choose the first of the answer.
    return request.tokens[:-1] if is_shared else ()
