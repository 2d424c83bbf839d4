"""What is known of all lanes, and of who waits for any of them, as one value.

A lane has slots, and a cache that no other lane reads. An answer is the same in each.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from jaxserver.core import scheduler, seating
from jaxserver.core.config import EngineConfig
from jaxserver.core.prefix_tree import Tokens
from jaxserver.core.schedule import Plan, QueuedRequest, SchedulerState


class Found(NamedTuple):
    """Where a beginning of some tokens is kept."""

    lane: int
    pages: tuple[int, ...]
    length: int


class Lanes(NamedTuple):
    """The lanes of an engine.

    Attributes:
        each: What runs in every lane; nobody waits there.
        waiting: In order of arrival.
    """

    each: tuple[SchedulerState, ...]
    waiting: tuple[QueuedRequest, ...] = ()

    @property
    def requests(self) -> tuple[QueuedRequest, ...]:
        """All that are not finished."""
        return (*self.waiting, *(r for lane in self.each for r in lane.requests))

    def state(self, lane: int) -> SchedulerState:
        """Of one lane, with all who wait."""
        return dataclasses.replace(self.each[lane], waiting=self.waiting)

    def after(self, lane: int, state: SchedulerState) -> "Lanes":
        """The same with another state of one lane, and of who waits."""
        states = list(self.each)
        states[lane] = dataclasses.replace(state, waiting=())
        return Lanes(tuple(states), state.waiting)


def empty(engine: EngineConfig) -> Lanes:
    """Nobody has come, and every page is free."""
    return Lanes((scheduler.empty(engine),) * engine.lanes)


def submit(lanes: Lanes, request: QueuedRequest) -> Lanes:
    """Puts a request at the end of the queue."""
    return lanes.after(0, scheduler.submit(lanes.state(0), request))


def plan(
    lanes: Lanes, lane: int, engine: EngineConfig, now: float
) -> tuple[Plan | None, Lanes]:
    """What one lane does next; see `scheduler.plan`."""
    others = (*lanes.each[:lane], *lanes.each[lane + 1 :])
    planned, state = scheduler.plan(lanes.state(lane), engine, now, others)
    return planned, lanes.after(lane, state)


def release(
    lanes: Lanes,
    engine: EngineConfig,
    request_ids: Iterable[int],
    kept: Mapping[int, int] | None = None,
) -> Lanes:
    """Forgets requests, wherever they are; see `scheduler.release`."""
    gone = frozenset(request_ids)
    for lane in range(len(lanes.each)):
        state = scheduler.release(lanes.state(lane), engine, gone, kept)
        lanes = lanes.after(lane, state)
    return lanes


def find(lanes: Lanes, engine: EngineConfig, tokens: Tokens) -> tuple[Found, Lanes]:
    """The longest beginning of some tokens that a cache holds; see `seating.found`."""
    best = Found(0, (), -1)
    for lane in range(len(lanes.each)):
        pages, length, state = seating.found(lanes.state(lane), engine, tokens)
        lanes = lanes.after(lane, state)
        if length > best.length:
            best = Found(lane, pages, length)
    return best, lanes


def give(
    lanes: Lanes, engine: EngineConfig, tokens: Tokens
) -> tuple[Found, Lanes] | None:
    """Pages that are about to hold some tokens, where the least is kept.

    None where there is no room; see `seating.given`.
    """
    each = sorted(enumerate(lanes.each), key=lambda lane: lane[1].cache.tree.num_pages)
    for lane, _ in each:
        given = seating.given(lanes.state(lane), engine, tokens)
        if given is not None:
            pages, state = given
            return Found(lane, pages, len(tokens)), lanes.after(lane, state)
    return None
