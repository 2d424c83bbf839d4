import dataclasses

import pytest

from jaxserver.core import scheduler
from jaxserver.core.config import EngineConfig
from jaxserver.core.pages import PagePool
from jaxserver.core.scheduler import (
    Chunk,
    DecodePlan,
    Outcome,
    PrefillPlan,
    QueuedRequest,
    SchedulerState,
)

ENGINE = EngineConfig(slots=5, max_len=1024, max_stream_tokens=32)
NOTHING_ENDED: frozenset[int] = frozenset()


def state_of(*prompts: int, streaming: bool = False) -> SchedulerState:
    state = SchedulerState(pool=PagePool.empty(ENGINE.slots))
    for request_id, prompt in enumerate(prompts):
        queued = QueuedRequest(
            request_id=request_id, prompt_length=prompt, streaming=streaming
        )
        state = scheduler.submit(state, queued)
    return state


def after(state: SchedulerState, plans: int) -> SchedulerState:
    for _ in range(plans):
        _, state = scheduler.plan(state, ENGINE)
    return state


def next_plan(
    state: SchedulerState, engine: EngineConfig = ENGINE
) -> PrefillPlan | DecodePlan | None:
    return scheduler.plan(state, engine)[0]


def decode_plan(state: SchedulerState) -> DecodePlan:
    plan = next_plan(state)
    assert isinstance(plan, DecodePlan)
    return plan


def test_nothing_to_do_is_no_plan() -> None:
    assert next_plan(state_of()) is None


def test_a_short_prompt_is_one_chunk_padded_to_the_least_length_that_holds_it() -> None:
    chunk = Chunk(request_id=0, slot=0, start=0, length=33, is_last=True)
    assert next_plan(state_of(33)) == PrefillPlan((chunk,), 128)


def test_a_long_prompt_goes_in_chunks_of_the_longest_length() -> None:
    plan, state = scheduler.plan(state_of(300), ENGINE)
    assert plan == PrefillPlan((Chunk(0, 0, 0, 256, is_last=False),), 256)
    assert next_plan(state) == PrefillPlan((Chunk(0, 0, 256, 44, is_last=True),), 128)


def test_prompts_are_prefilled_together_in_order_of_arrival() -> None:
    engine = dataclasses.replace(ENGINE, prefill_rows=2)
    plan = next_plan(state_of(5, 40, 6), engine)
    assert isinstance(plan, PrefillPlan)
    assert [(c.request_id, c.slot, c.length) for c in plan.chunks] == [
        (0, 0, 5),
        (1, 1, 40),
    ]
    assert plan.time == 128


def test_prefill_and_decode_take_turns() -> None:
    state, kinds = state_of(5, 300, 5), []
    for _ in range(6):
        plan, state = scheduler.plan(state, ENGINE)
        kinds.append(type(plan))
    assert kinds == [PrefillPlan, DecodePlan] * 3


@pytest.mark.parametrize(("requests", "rows"), [(1, 4), (4, 4), (5, 5)])
def test_a_block_runs_the_least_rows_that_hold_its_slots(
    requests: int, rows: int
) -> None:
    state = after(state_of(*[5] * requests), 2 * requests)
    plan = decode_plan(state)
    assert plan.rows == rows
    assert plan.requests == {slot: slot for slot in range(requests)}


def test_a_freed_slot_goes_to_who_waits_first() -> None:
    state = after(state_of(*[5] * 7), 1)
    state = scheduler.release(state, [2, 5])
    _, state = scheduler.plan(state, ENGINE)
    assert {r.request.request_id: r.slot for r in state.running}[6] == 2
    assert not state.waiting


def test_a_block_has_full_length_when_nobody_reads_along_or_waits() -> None:
    assert decode_plan(after(state_of(5), 1)).num_steps == 32


def test_the_first_hurried_block_has_one_step_since_nothing_is_known_yet() -> None:
    assert decode_plan(after(state_of(5, streaming=True), 1)).num_steps == 1


@pytest.mark.parametrize(
    ("step_seconds", "num_steps"), [(0.02, 5), (0.001, 32), (0.3, 1), (0.1, 1)]
)
def test_a_hurried_block_takes_no_longer_than_it_may(
    step_seconds: float, num_steps: int
) -> None:
    state = after(state_of(5, streaming=True), 1)
    outcome = Outcome(NOTHING_ENDED, 8, 8 * step_seconds)
    assert decode_plan(scheduler.absorb(state, outcome)).num_steps == num_steps


def test_a_block_is_hurried_while_a_prompt_is_unfinished_or_waits() -> None:
    between = dataclasses.replace(after(state_of(5, 300), 2), decoded_last=False)
    assert decode_plan(between).num_steps == 1
    full = dataclasses.replace(after(state_of(*[5] * 6), 10), decoded_last=False)
    assert full.waiting
    assert decode_plan(full).num_steps == 1


def test_step_times_are_smoothed_and_prefills_do_not_count() -> None:
    state = state_of()
    state = scheduler.absorb(state, Outcome(NOTHING_ENDED, 2, 0.5))
    assert state.step_seconds == 0.25
    state = scheduler.absorb(state, Outcome(NOTHING_ENDED, 4, 3.0))
    assert state.step_seconds == 0.5
    assert scheduler.absorb(state, Outcome(NOTHING_ENDED, 0, 9.0)) == state


def test_finished_requests_free_their_slots() -> None:
    state = after(state_of(5, 5), 1)
    state = scheduler.absorb(state, Outcome(frozenset({0}), 0, 0.1))
    assert state.pool.num_free == ENGINE.slots - 1
    assert [r.request.request_id for r in state.running] == [1]


def test_releasing_who_is_gone_changes_nothing() -> None:
    state = after(state_of(5), 1)
    assert scheduler.release(state, [7]) == state
