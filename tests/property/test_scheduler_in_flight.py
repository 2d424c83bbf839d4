"""The scheduler one dispatch ahead of what it knows, as the engine runs it.

Each lane has a simulated device, which takes every dispatch at once and in order; its
outcomes are read later, when the requests in them may have been cancelled and their
slots reused.
"""

import collections
import dataclasses
from typing import TypeAlias

import hypothesis
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from jaxserver.core import lanes, scheduler
from jaxserver.core.config import EngineConfig
from jaxserver.core.prefix_tree import ROOT
from jaxserver.core.schedule import Outcome, Plan, QueuedRequest, SchedulerState
from tests.simulated import VOCAB, Asked, SimulatedDevice

STEP_SECONDS = 0.05
TOKENS = st.integers(0, VOCAB - 1)
MAX_LEN = 48
LANES = st.sampled_from([1, 1, 2, 3])

whole_rows = st.builds(
    EngineConfig,
    slots=st.sampled_from([1, 4, 5]),
    lanes=LANES,
    max_len=st.just(MAX_LEN),
    prefill_rows=st.sampled_from([1, 2, 3]),
    max_stream_tokens=st.sampled_from([1, 8]),
    chunk=st.sampled_from([None, None, 8]),
    prefix_cache=st.booleans(),
)
few_pages = st.builds(
    EngineConfig,
    slots=st.sampled_from([1, 4, 5]),
    lanes=LANES,
    max_len=st.just(MAX_LEN),
    prefill_rows=st.sampled_from([1, 2]),
    max_stream_tokens=st.sampled_from([1, 8]),
    tokens_per_page=st.just(8),
    pages=st.integers(MAX_LEN // 8, 20),
    prefix_cache=st.booleans(),
)


InFlight: TypeAlias = collections.deque[tuple[Plan, Outcome]]


class Ahead(RuleBasedStateMachine):
    """Requests come and go while one dispatch runs and another waits."""

    @initialize(engine=whole_rows | few_pages)
    def begin(self, engine: EngineConfig) -> None:
        self.engine = engine
        self.lanes = lanes.empty(engine)
        self.asked: dict[int, Asked] = {}
        self.got: dict[int, tuple[int, ...]] = {}
        self.open: set[int] = set()
        self.admitted: list[int] = []
        self.each = range(engine.lanes)
        self.devices = [SimulatedDevice(engine, self.asked) for _ in self.each]
        self.in_flight: list[InFlight] = [collections.deque() for _ in self.each]

    def prompt(self, data: st.DataObject) -> tuple[int, ...]:
        """Often one that begins as another one, or as one and its answer."""
        rest = tuple(data.draw(st.lists(TOKENS, min_size=1, max_size=30)))
        begins_alike: bool = data.draw(st.booleans())
        if self.asked and begins_alike:
            before = self.asked[data.draw(st.sampled_from(sorted(self.asked)))].whole
            rest = (*before[: data.draw(st.integers(0, len(before)))], *rest)
        return rest[: MAX_LEN - 1]

    @rule(data=st.data(), streaming=st.booleans(), times=st.integers(1, 3))
    def come(self, data: st.DataObject, streaming: bool, times: int) -> None:
        prompt = self.prompt(data)
        for _ in range(times):
            request_id = len(self.asked)
            room = MAX_LEN - len(prompt)
            size = data.draw(st.integers(1, min(20, room)))
            answer = data.draw(st.lists(TOKENS, min_size=size, max_size=size))
            self.asked[request_id] = Asked(prompt=prompt, answer=tuple(answer))
            self.got[request_id] = ()
            self.open.add(request_id)
            queued = QueuedRequest(
                request_id=request_id,
                tokens=prompt,
                limit=len(prompt) + size + data.draw(st.integers(0, room - size)),
                streaming=streaming,
            )
            self.lanes = lanes.submit(self.lanes, queued)

    @precondition(lambda self: bool(self.open))
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        request_id = data.draw(st.sampled_from(sorted(self.open)))
        self.open.remove(request_id)
        kept = {request_id: data.draw(st.integers(0, len(self.got[request_id])))}
        self.lanes = lanes.release(self.lanes, self.engine, [request_id], kept)

    @precondition(lambda self: any(lane.running for lane in self.lanes.each))
    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        """A dispatch takes its lane's cache and slots with it."""
        lane = data.draw(st.sampled_from(self.each))
        failed = [i for plan, _ in self.in_flight[lane] for i in plan.request_ids]
        tried = data.draw(st.booleans())
        self.in_flight[lane].clear()
        self.devices[lane].pages.clear()
        self.devices[lane].rows.clear()
        before = self.lanes.state(lane)
        tried_ids = failed if tried else ()
        state, given_up = scheduler.lose(before, self.engine, tried_ids, failed)
        self.lanes = self.lanes.after(lane, state)
        self.open -= set(given_up)
        for request in state.requests:
            self.got[request.request_id] = request.tokens[request.prompt_length :]

    @rule(
        data=st.data(),
        turns=st.integers(1, 6),
        seconds=st.floats(0.0009765625, 2, width=32),
    )
    def run(self, data: st.DataObject, turns: int, seconds: float) -> None:
        """One lane does something; the others may be in the middle of theirs."""
        for _ in range(turns):
            self.turn(data.draw(st.sampled_from(self.each)), seconds)

    def turn(self, lane: int, seconds: float) -> bool:
        """As the engine's loop: dispatch, then read all but the newest outcome."""
        plan, self.lanes = lanes.plan(self.lanes, lane, self.engine, 0.0)
        in_flight = self.in_flight[lane]
        if plan is not None:
            assert set(plan.request_ids) <= self.open
            in_flight.append((plan, self.devices[lane].run(plan, seconds)))
        if len(in_flight) > 1 or (plan is None and in_flight):
            self.read(lane, *in_flight.popleft())
        return plan is not None

    def read(self, lane: int, plan: Plan, outcome: Outcome) -> None:
        finished = outcome.finished & self.open
        for request_id, tokens in outcome.drawn.items():
            if request_id in self.open:
                self.got[request_id] += tokens
        for request_id in finished:
            assert self.got[request_id] == self.asked[request_id].answer
        self.open -= finished
        outcome = outcome._replace(finished=finished)
        state = scheduler.absorb(self.lanes.state(lane), self.engine, plan, outcome)
        self.lanes = self.lanes.after(lane, state)

    @invariant()
    def who_is_not_finished_is_known(self) -> None:
        known = [request.request_id for request in self.lanes.requests]
        assert sorted(known) == sorted(self.open)

    @invariant()
    def a_running_request_has_a_slot_of_its_own(self) -> None:
        for lane in self.lanes.each:
            slots = [r.slot for r in lane.running]
            assert len({*slots}) == len(slots) <= self.engine.slots

    @invariant()
    def every_reference_is_a_rows_or_the_trees(self) -> None:
        for lane in self.lanes.each:
            check_references(lane)

    def teardown(self) -> None:
        """Everybody is served whole, in a number of turns that the work explains."""
        work = sum(len(r.whole) + 2 for r in self.asked.values())
        for _ in range(4 * work + 8):
            has_run = [self.turn(lane, STEP_SECONDS) for lane in self.each]
            if not any(has_run) and not any(self.in_flight):
                break
        assert not self.open
        assert not any(self.in_flight)
        for lane in self.lanes.each:
            assert not lane.running
            check_references(lane)


def check_references(state: SchedulerState) -> None:
    counted = collections.Counter(page for r in state.running for page in r.pages)
    counted.update(page for page in state.cache.tree.nodes if page != ROOT)
    references = state.cache.pool.references
    assert references == tuple(counted[page] for page in range(len(references)))


TestAhead = Ahead.TestCase
TestAhead.settings = hypothesis.settings(
    max_examples=max(25, hypothesis.settings().max_examples // 2)
)
"""An example is a story of fifty events."""


def test_prompts_that_come_together_share_the_work_on_their_beginning() -> None:
    engine = EngineConfig(slots=8, max_len=1024, prefill_rows=2)
    asked = {i: Asked(prompt=(*range(600), 1000 + i), answer=(7, 8)) for i in range(4)}
    state, run = scheduler.empty(engine), 0
    for request_id, request in asked.items():
        queued = QueuedRequest(
            request_id=request_id,
            tokens=request.prompt,
            limit=700,
            streaming=True,
        )
        state = scheduler.submit(state, queued)
    device = SimulatedDevice(engine, asked)
    while state.requests:
        plan, state = scheduler.plan(state, engine, 0.0)
        assert plan is not None
        outcome = device.run(plan, 0.01)
        run += sum(len(c.tokens) for c in getattr(plan, "chunks", ()))
        state = scheduler.absorb(state, engine, plan, outcome)
    assert run == 601 + 3


def test_the_youngest_gives_up_its_pages_and_comes_back() -> None:
    engine = EngineConfig(
        slots=2, max_len=64, tokens_per_page=8, pages=8, max_stream_tokens=4
    )
    prompts = [tuple(range(i, i + 20)) for i in (0, 100)]
    asked = {
        i: Asked(prompt=p, answer=tuple(range(i, i + 40)))
        for i, p in enumerate(prompts)
    }
    state = scheduler.empty(engine)
    for request_id, request in asked.items():
        queued = QueuedRequest(
            request_id=request_id, tokens=request.prompt, limit=64, streaming=False
        )
        state = scheduler.submit(state, queued)
    device, ended = SimulatedDevice(engine, asked), []
    while state.requests:
        plan, state = scheduler.plan(state, engine, 0.0)
        assert plan is not None
        outcome = device.run(plan, 0.01)
        ended += sorted(outcome.finished)
        state = scheduler.absorb(state, engine, plan, outcome)
    assert ended == [0, 1]
    assert state.num_preempted


def test_waiting_makes_a_request_more_urgent() -> None:
    engine = dataclasses.replace(EngineConfig(slots=1, max_len=64), ageing_seconds=5.0)

    def admitted(now: float) -> int:
        state = scheduler.empty(engine)
        for request_id, (priority, came) in enumerate([(2, 0.0), (1, 9.0), (1, 9.0)]):
            queued = QueuedRequest(
                request_id=request_id,
                tokens=(1, 2),
                limit=9,
                streaming=True,
                priority=priority,
                queued_seconds=came,
            )
            state = scheduler.submit(state, queued)
        plan, _ = scheduler.plan(state, engine, now)
        assert plan is not None
        return plan.request_ids[0]

    assert admitted(9.0) == 0
    assert admitted(4.0) == 1


def test_a_page_that_matches_in_part_keeps_nobody_waiting_for_it() -> None:
    """Of six pages the second request needs all, and finds one and a half."""
    engine = EngineConfig(slots=2, max_len=48, tokens_per_page=8, pages=6)
    asked = {
        0: Asked(prompt=tuple(range(40)), answer=(1, 2, 3, 4)),
        1: Asked(prompt=(*range(12), *range(100, 130)), answer=(5, 6, 7, 8)),
    }
    device, state = SimulatedDevice(engine, asked), scheduler.empty(engine)
    for request_id, request in asked.items():
        queued = QueuedRequest(
            request_id=request_id, tokens=request.prompt, limit=46, streaming=False
        )
        state = scheduler.submit(state, queued)
        while state.requests:
            plan, state = scheduler.plan(state, engine, 0.0)
            assert plan is not None
            outcome = device.run(plan, 0.01)
            state = scheduler.absorb(state, engine, plan, outcome)
    assert state.num_hits == 1
