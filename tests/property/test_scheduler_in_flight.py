"""The scheduler one dispatch ahead of what it knows, as the engine runs it.

A device that is simulated takes every dispatch at once and in order; its outcomes are
read later, when the requests in them may have been cancelled and their slots reused.
"""

import collections
import dataclasses

import hypothesis
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from jaxserver.core import scheduler
from jaxserver.core.config import MAX_CALL_TOKENS, EngineConfig
from jaxserver.core.pages import PagePool
from jaxserver.core.scheduler import Chunk, DecodePlan, PrefillPlan, QueuedRequest


@dataclasses.dataclass(kw_only=True)
class Asked:
    """A request, and how far the device has come with it."""

    prompt_length: int
    answer_length: int
    held: int = 0
    drawn: int = 0

    @property
    def is_active(self) -> bool:
        return 0 < self.drawn < self.answer_length


class Ahead(RuleBasedStateMachine):
    """Requests come and go while one dispatch runs and another waits."""

    @initialize(
        slots=st.sampled_from([1, 4, 5]),
        prefill_rows=st.sampled_from([1, 2, 3]),
        block=st.sampled_from([1, 8]),
    )
    def begin(self, slots: int, prefill_rows: int, block: int) -> None:
        self.engine = EngineConfig(
            slots=slots,
            max_len=1024,
            prefill_rows=prefill_rows,
            max_stream_tokens=block,
        )
        self.state = scheduler.SchedulerState(pool=PagePool.empty(slots))
        self.asked: dict[int, Asked] = {}
        self.open: set[int] = set()
        self.device: dict[int, int] = {}
        self.in_flight: collections.deque[scheduler.Outcome] = collections.deque()

    @rule(
        prompt=st.sampled_from([1, 32, 129, 300]),
        answer=st.integers(1, 20),
        streaming=st.booleans(),
    )
    def come(self, prompt: int, answer: int, streaming: bool) -> None:
        request_id = len(self.asked)
        self.asked[request_id] = Asked(prompt_length=prompt, answer_length=answer)
        self.open.add(request_id)
        queued = QueuedRequest(
            request_id=request_id, prompt_length=prompt, streaming=streaming
        )
        self.state = scheduler.submit(self.state, queued)

    @precondition(lambda self: bool(self.open))
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        request_id = data.draw(st.sampled_from(sorted(self.open)))
        self.open.remove(request_id)
        self.state = scheduler.release(self.state, [request_id])

    @rule(turns=st.integers(1, 4), seconds=st.floats(0.0009765625, 2, width=32))
    def run(self, turns: int, seconds: float) -> None:
        for _ in range(turns):
            self.turn(seconds)

    def turn(self, seconds: float) -> None:
        """As the engine's loop: dispatch, then read all but the newest outcome."""
        plan, self.state = scheduler.plan(self.state, self.engine)
        if plan is not None:
            self.in_flight.append(self.dispatch(plan, seconds))
        if len(self.in_flight) > 1 or (plan is None and self.in_flight):
            outcome = self.in_flight.popleft()
            finished = outcome.finished & self.open
            self.open -= finished
            outcome = outcome._replace(finished=finished)
            self.state = scheduler.absorb(self.state, outcome)

    def dispatch(
        self, plan: PrefillPlan | DecodePlan, seconds: float
    ) -> scheduler.Outcome:
        if isinstance(plan, PrefillPlan):
            assert self.engine.prefill_rows * plan.time <= MAX_CALL_TOKENS
            ended = {c.request_id for c in plan.chunks if self.prefill(c)}
            assert len({c.slot for c in plan.chunks}) == len(plan.chunks)
            return scheduler.Outcome(frozenset(ended), 0, seconds)
        drawn = {
            request_id: self.decode(slot, request_id, plan.num_steps)
            for slot, request_id in plan.requests.items()
        }
        ended = {i for i in drawn if not self.asked[i].is_active}
        steps = max(drawn.values())
        return scheduler.Outcome(frozenset(ended), steps, steps * seconds)

    def prefill(self, chunk: Chunk) -> bool:
        """Whether the request ends with its first token."""
        assert chunk.request_id in self.open
        asked = self.asked[chunk.request_id]
        if chunk.start == 0:
            self.device[chunk.slot] = chunk.request_id
        assert self.device[chunk.slot] == chunk.request_id
        assert asked.held == chunk.start
        asked.held += chunk.length
        if chunk.is_last:
            assert asked.held == asked.prompt_length
            asked.drawn = 1
        return chunk.is_last and not asked.is_active

    def decode(self, slot: int, request_id: int, num_steps: int) -> int:
        """How many tokens the block brings; none where it has ended meanwhile."""
        assert request_id in self.open
        assert self.device[slot] == request_id
        asked = self.asked[request_id]
        assert asked.drawn
        count = min(num_steps, asked.answer_length - asked.drawn)
        asked.drawn += count
        return count

    @invariant()
    def a_running_request_has_a_slot_of_its_own(self) -> None:
        slots = [r.slot for r in self.state.running]
        assert len({*slots}) == len(slots)
        held = [i for i, count in enumerate(self.state.pool.references) if count]
        assert sorted(slots) == held

    def teardown(self) -> None:
        """Everybody is served whole, in a number of turns that the work explains."""
        work = sum(
            r.prompt_length // 85 + r.answer_length + 2 for r in self.asked.values()
        )
        for _ in range(2 * work + 4):
            self.turn(0.05)
        assert not self.open
        assert not self.in_flight
        assert self.state.pool.num_free == self.engine.slots


TestAhead = Ahead.TestCase
TestAhead.settings = hypothesis.settings(
    max_examples=max(25, hypothesis.settings().max_examples // 2)
)
"""An example is a story of fifty events."""
