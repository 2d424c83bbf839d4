"""The scheduler as a state machine, over a device that takes simulated time."""

import random

import hypothesis
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from jaxserver.core import scheduler
from jaxserver.core.chunks import chunk_seconds
from jaxserver.core.config import EngineConfig
from jaxserver.core.schedule import (
    DecodePlan,
    Outcome,
    Plan,
    PrefillPlan,
    QueuedRequest,
    SchedulerState,
)
from jaxserver.core.seating import admit

SLOTS = 4
STEP_SECONDS = 0.03
ENGINE = EngineConfig(slots=SLOTS, max_len=1024, max_stream_tokens=8)


def seconds_of(plan: PrefillPlan) -> float:
    """Longer for a longer chunk, and after more tokens."""
    start = max(chunk.start for chunk in plan.chunks)
    return 0.02 + 0.002 * plan.time + 0.0005 * start


class Requests(RuleBasedStateMachine):
    """Requests come, are cancelled, and are answered by a device that counts."""

    def __init__(self) -> None:
        super().__init__()
        self.state = scheduler.empty(ENGINE)
        self.left: dict[int, int] = {}
        self.prompts: dict[int, int] = {}
        self.prefilled: dict[int, int] = {}
        self.admitted: list[int] = []
        self.cancelled: set[int] = set()
        self.count = 0
        self.last_plan: Plan | None = None

    @rule(
        prompt=st.sampled_from([1, 24, 25, 272, 273, 700]),
        answer=st.integers(1, 30),
        streaming=st.booleans(),
    )
    def come(self, prompt: int, answer: int, streaming: bool) -> None:
        request = QueuedRequest(
            request_id=self.count,
            tokens=(self.count,) * prompt,
            limit=ENGINE.max_len,
            streaming=streaming,
        )
        self.state = scheduler.submit(self.state, request)
        self.left[self.count] = answer
        self.prompts[self.count] = prompt
        self.prefilled[self.count] = 0
        self.count += 1

    @precondition(lambda self: bool(self.left))
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        request_id = data.draw(st.sampled_from(sorted(self.left)))
        self.state = scheduler.release(self.state, ENGINE, [request_id])
        self.cancelled.add(request_id)
        del self.left[request_id]
        running = [r.request.request_id for r in self.state.running]
        assert request_id not in running

    @rule(turns=st.integers(1, 6))
    def run(self, turns: int) -> None:
        for _ in range(turns):
            self.turn()

    def turn(self) -> None:
        had_both, before = self.has_both_kinds_of_work(), self.state
        plan, self.state = scheduler.plan(self.state, ENGINE, 0.0)
        if plan is None:
            assert not self.left
            return
        self.check_turn(plan if had_both else None)
        if isinstance(plan, PrefillPlan):
            self.check_chunk(plan, before)
            self.prefill(plan)
        else:
            self.decode(plan)

    def check_turn(self, plan: Plan | None) -> None:
        """Kinds take turns, but for the rest of a prompt where it is short enough.

        Args:
            plan: None where there was but one kind of work.
        """
        if plan is not None and type(plan) is type(self.last_plan):
            assert isinstance(plan, PrefillPlan)
            assert isinstance(self.last_plan, PrefillPlan)
            assert plan.request_ids == self.last_plan.request_ids
            assert all(chunk.is_last for chunk in plan.chunks)
            assert 0 < self.state.stalled_seconds <= ENGINE.prefill_seconds
        self.last_plan = plan

    def check_chunk(self, plan: PrefillPlan, before: SchedulerState) -> None:
        """A longest chunk is not known to take longer than readers are to wait."""
        longest = ENGINE.prefill_lengths[-1]
        has_reader = any(r.is_decoding and r.request.streaming for r in before.running)
        if not has_reader or plan.time < longest:
            return
        (chunk,) = plan.chunks
        known = chunk_seconds(before.chunk_seconds, chunk.start // longest, longest)
        is_short = self.prompts[chunk.request_id] <= scheduler.SHORT_PROMPT * longest
        times = scheduler.PATIENCE if is_short else 1
        assert known <= times * ENGINE.prefill_seconds

    def has_both_kinds_of_work(self) -> bool:
        kinds = {r.is_decoding for r in self.state.running}
        may_enter = self.state.waiting and len(self.state.running) < SLOTS
        return True in kinds and (False in kinds or bool(may_enter))

    def prefill(self, plan: PrefillPlan) -> None:
        finished = set()
        for chunk in plan.chunks:
            assert chunk.start == self.prefilled[chunk.request_id]
            assert 0 < chunk.length <= plan.time
            assert plan.time in ENGINE.prefill_lengths
            if chunk.start == 0:
                self.admitted.append(chunk.request_id)
            end = chunk.start + chunk.length
            self.prefilled[chunk.request_id] = end
            assert chunk.is_last == (end == self.prompts[chunk.request_id])
            if chunk.is_last:
                finished |= self.draw(chunk.request_id, 1)
        self.absorb(plan, finished, 0, seconds_of(plan))

    def decode(self, plan: DecodePlan) -> None:
        assert 1 <= plan.num_tokens <= ENGINE.max_stream_tokens
        assert max(plan.requests) < plan.rows
        assert plan.rows in ENGINE.decode_ladder
        running = self.state.running
        hurried = self.state.waiting or any(r.request.streaming for r in running)
        seated = admit(self.state, ENGINE, 0.0).running
        if not all(r.is_decoding for r in seated):
            assert plan.num_tokens == 1
        elif hurried and self.state.step_seconds:
            assert plan.num_tokens * STEP_SECONDS <= ENGINE.block_seconds + 1e-9
        elif not hurried:
            assert plan.num_tokens == ENGINE.max_stream_tokens
        finished = set()
        for request_id in plan.requests.values():
            finished |= self.draw(request_id, plan.num_tokens)
        seconds = plan.num_tokens * STEP_SECONDS
        self.absorb(plan, finished, plan.num_tokens, seconds)

    def absorb(
        self, plan: Plan, finished: set[int], steps: int, seconds: float
    ) -> None:
        outcome = Outcome(
            drawn={},
            finished=frozenset(finished),
            unsound=frozenset(),
            steps=steps,
            seconds=seconds,
        )
        self.state = scheduler.absorb(self.state, ENGINE, plan, outcome)

    def draw(self, request_id: int, count: int) -> set[int]:
        self.left[request_id] -= count
        if self.left[request_id] > 0:
            return set()
        del self.left[request_id]
        return {request_id}

    @invariant()
    def every_slot_has_at_most_one_request(self) -> None:
        slots = [r.slot for r in self.state.running]
        assert len(slots) == len(set(slots))
        assert self.state.cache.num_used == len(slots)

    @invariant()
    def who_is_not_finished_is_known(self) -> None:
        waiting = [r.request_id for r in self.state.waiting]
        running = [r.request.request_id for r in self.state.running]
        assert sorted([*waiting, *running]) == sorted(self.left)

    @invariant()
    def first_come_is_first_served(self) -> None:
        assert self.admitted == sorted(self.admitted)

    def teardown(self) -> None:
        """Whatever came is finished in a number of turns that the work explains."""
        chunks = sum(-(-self.prompts[i] // 24) for i in self.left)
        for _ in range(2 * (chunks + sum(self.left.values())) + 2):
            self.turn()
        assert not self.left
        assert self.state.cache.num_used == 0


TestRequests = Requests.TestCase
TestRequests.settings = hypothesis.settings(
    max_examples=max(25, hypothesis.settings().max_examples // 2)
)
"""An example is a story of fifty events."""


def test_a_prompt_that_waits_enters_as_soon_as_a_slot_is_free() -> None:
    machine = Requests()
    for _ in range(SLOTS + 1):
        machine.come(prompt=32, answer=random.Random(0).randint(5, 20), streaming=True)
    while machine.count - len(machine.left) == 0:
        machine.turn()
    machine.turn()
    machine.turn()

    assert SLOTS in machine.admitted
