import dataclasses

import pytest

from jaxserver.core import scheduler
from jaxserver.core.config import EngineConfig
from jaxserver.core.schedule import (
    Chunk,
    DecodePlan,
    Outcome,
    Plan,
    PrefillPlan,
    QueuedRequest,
    SchedulerState,
    Seated,
)
from jaxserver.core.seating import replaced

ENGINE = EngineConfig(slots=5, max_len=1024, max_stream_tokens=32)
NOTHING_ENDED: frozenset[int] = frozenset()


def tokens_of(request_id: int, length: int) -> tuple[int, ...]:
    return tuple(range(1000 * request_id, 1000 * request_id + length))


def chunk_of(request_id: int, slot: int, span: tuple[int, int], length: int) -> Chunk:
    start, end = span
    return Chunk(
        request_id=request_id,
        slot=slot,
        start=start,
        tokens=tokens_of(request_id, length)[start:end],
        is_last=end == length,
        pages=(slot,),
        seat=Seated((), None) if start == 0 else None,
    )


def outcome_of(
    plan: Plan, *, finished: frozenset[int] = NOTHING_ENDED, seconds: float, steps: int
) -> Outcome:
    return Outcome(
        drawn={},
        finished=finished,
        unsound=frozenset(),
        steps=steps,
        seconds=seconds,
    )


def state_of(
    *prompts: int, streaming: bool = False, engine: EngineConfig = ENGINE
) -> SchedulerState:
    """Requests whose prompts begin with a token of their own."""
    state = scheduler.empty(engine)
    for request_id, length in enumerate(prompts):
        queued = QueuedRequest(
            request_id=request_id,
            tokens=tokens_of(request_id, length),
            limit=1024,
            streaming=streaming,
        )
        state = scheduler.submit(state, queued)
    return state


def after(state: SchedulerState, plans: int) -> SchedulerState:
    for _ in range(plans):
        _, state = scheduler.plan(state, ENGINE, 0.0)
    return state


def with_first_tokens(state: SchedulerState) -> SchedulerState:
    """Everybody decodes, and what the prefills chose has been read."""
    for running in state.running:
        request = running.request
        known = dataclasses.replace(
            request,
            tokens=(*request.tokens, 7),
            num_drawn=request.num_drawn + 1,
            unread=0,
            ahead=0,
        )
        read = dataclasses.replace(running, request=known, stored=running.wanted)
        state = replaced(state, read)
    return state


def next_plan(
    state: SchedulerState, engine: EngineConfig = ENGINE
) -> PrefillPlan | DecodePlan | None:
    return scheduler.plan(state, engine, 0.0)[0]


def decode_plan(state: SchedulerState) -> DecodePlan:
    plan = next_plan(state)
    assert isinstance(plan, DecodePlan)
    return plan


def test_nothing_to_do_is_no_plan() -> None:
    assert next_plan(state_of()) is None


def test_a_short_prompt_is_one_chunk_padded_to_the_least_length_that_holds_it() -> None:
    chunk = chunk_of(0, 0, (0, 81), 81)
    assert next_plan(state_of(81)) == PrefillPlan((chunk,), 136)


def test_a_prompt_is_cut_where_padding_it_would_cost_more() -> None:
    state, found = state_of(163), []
    for _ in range(3):
        plan, state = scheduler.plan(state, ENGINE, 0.0)
        assert isinstance(plan, PrefillPlan)
        found.append((plan.chunks[0].length, plan.time))
    assert found == [(136, 136), (24, 24), (3, 24)]


def test_a_long_prompt_goes_in_chunks_of_the_longest_length() -> None:
    plan, state = scheduler.plan(state_of(300), ENGINE, 0.0)
    assert plan == PrefillPlan((chunk_of(0, 0, (0, 136), 300),), 136)
    assert next_plan(state) == PrefillPlan((chunk_of(0, 0, (136, 272), 300),), 136)


def test_prompts_are_prefilled_together_in_order_of_arrival() -> None:
    engine = dataclasses.replace(ENGINE, prefill_rows=2)
    plan = next_plan(state_of(5, 40, 6), engine)
    assert isinstance(plan, PrefillPlan)
    assert [(c.request_id, c.slot, c.length) for c in plan.chunks] == [
        (0, 0, 5),
        (1, 1, 24),
    ]
    assert plan.time == 24


def test_prefill_and_decode_take_turns() -> None:
    state, kinds = state_of(5, 300, 5), []
    for _ in range(6):
        plan, state = scheduler.plan(state, ENGINE, 0.0)
        kinds.append(type(plan))
    assert kinds == [PrefillPlan, *[PrefillPlan, DecodePlan] * 2, PrefillPlan]


@pytest.mark.parametrize(("requests", "rows"), [(1, 1), (2, 4), (4, 4), (5, 5)])
def test_a_block_runs_the_least_rows_that_hold_its_slots(
    requests: int, rows: int
) -> None:
    state = after(state_of(*[5] * requests), 2 * requests)
    plan = decode_plan(state)
    assert plan.rows == rows
    assert plan.requests == {slot: slot for slot in range(requests)}


def test_a_freed_slot_goes_to_who_waits_first() -> None:
    state = after(state_of(*[5] * 7), 9)
    assert len(state.running) == 5
    state = scheduler.release(state, ENGINE, [2, 5])
    state = dataclasses.replace(state, stalled_seconds=0.0)
    _, state = scheduler.plan(state, ENGINE, 0.0)
    assert {r.request.request_id: r.slot for r in state.running}[6] == 2
    assert not state.waiting


def test_a_block_has_full_length_when_nobody_reads_along_or_waits() -> None:
    state = with_first_tokens(after(state_of(5), 1))
    assert decode_plan(state).num_tokens == 32


@pytest.mark.parametrize("num_drawn", [0, 2])
@pytest.mark.parametrize("streaming", [True, False])
def test_a_block_behind_a_prompt_that_is_still_run_has_one_step(
    streaming: bool, num_drawn: int
) -> None:
    """Also where a part of the answer is run again with it."""
    request = QueuedRequest(
        request_id=0,
        tokens=tokens_of(0, 5),
        limit=1024,
        streaming=streaming,
        num_drawn=num_drawn,
    )
    state = after(scheduler.submit(scheduler.empty(ENGINE), request), 1)
    state = dataclasses.replace(state, step_seconds=0.005)
    assert decode_plan(state).num_tokens == 1
    assert decode_plan(with_first_tokens(state)).num_tokens > 1


def test_the_first_hurried_block_has_one_step_since_nothing_is_known_yet() -> None:
    state = with_first_tokens(after(state_of(5, streaming=True), 1))
    assert decode_plan(state).num_tokens == 1


@pytest.mark.parametrize(
    ("step_seconds", "num_tokens"), [(0.02, 5), (0.001, 32), (0.3, 1), (0.1, 1)]
)
def test_a_hurried_block_takes_no_longer_than_it_may(
    step_seconds: float, num_tokens: int
) -> None:
    state = with_first_tokens(after(state_of(5, streaming=True), 1))
    plan, state = scheduler.plan(state, ENGINE, 0.0)
    assert plan is not None
    outcome = outcome_of(plan, steps=8, seconds=8 * step_seconds)
    state = scheduler.absorb(state, ENGINE, plan, outcome)
    assert decode_plan(state).num_tokens == num_tokens


def test_between_the_chunks_of_a_prompt_one_token_is_decoded() -> None:
    between = dataclasses.replace(
        after(state_of(5, 300), 2), stalled_seconds=0.1, step_seconds=0.001
    )
    assert decode_plan(between).num_tokens == 1


@pytest.mark.parametrize(
    ("rows", "streaming", "num_tokens"),
    [(1, True, [1, 20]), (1, False, [32, 32]), (2, True, [20, 20])],
)
def test_who_stood_still_for_a_prompt_gets_a_token_before_a_block(
    rows: int, streaming: bool, num_tokens: list[int]
) -> None:
    """Two prompts run one after the other, or together while nobody stands still."""
    engine = dataclasses.replace(ENGINE, prefill_rows=rows)
    state = state_of(5, 5, streaming=streaming, engine=engine)
    for _ in range(2 // rows):
        _, state = scheduler.plan(state, engine, 0.0)
    state = dataclasses.replace(with_first_tokens(state), step_seconds=0.005)
    for count in num_tokens:
        plan, state = scheduler.plan(state, engine, 0.0)
        assert isinstance(plan, DecodePlan)
        assert len(plan.requests) == 2
        assert plan.num_tokens == count


def test_a_block_is_long_while_who_waits_can_have_no_pages() -> None:
    engine = dataclasses.replace(ENGINE, tokens_per_page=128, pages=8)
    state = state_of(664, 1000, engine=engine)
    for _ in range(5):
        plan, state = scheduler.plan(state, engine, 0.0)
        assert isinstance(plan, PrefillPlan)
    state = dataclasses.replace(with_first_tokens(state), step_seconds=0.01)
    plan, _ = scheduler.plan(state, engine, 0.0)
    assert isinstance(plan, DecodePlan)
    assert plan.num_tokens == 10


def test_a_block_is_hurried_while_somebody_waits() -> None:
    full = with_first_tokens(after(state_of(*[5] * 6), 10))
    full = dataclasses.replace(full, step_seconds=0.005)
    assert full.waiting
    assert decode_plan(full).num_tokens == 20
    alone = dataclasses.replace(full, waiting=())
    assert decode_plan(alone).num_tokens == 32


def test_step_times_are_smoothed_and_prefills_have_their_own() -> None:
    decode = DecodePlan({}, 4, 8, {})
    state = scheduler.empty(ENGINE)
    for steps, seconds, mean in [(2, 0.5, 0.25), (4, 3.0, 0.5)]:
        outcome = outcome_of(decode, steps=steps, seconds=seconds)
        state = scheduler.absorb(state, ENGINE, decode, outcome)
        assert state.step_seconds == mean
    times: dict[int, dict[int, float]] = {}
    for starts, length, seconds, mean in [
        ((0,), 24, 0.3, 0.3),
        ((0,), 136, 1.6, 1.6),
        ((300, 80), 136, 8.0, 8.0),
        ((310, 0), 136, 4.0, 6.0),
    ]:
        chunks = (chunk_of(0, 0, (start, start + 9), 900) for start in starts)
        plan = PrefillPlan(tuple(chunks), length)
        outcome = outcome_of(plan, steps=0, seconds=seconds)
        state = scheduler.absorb(state, ENGINE, plan, outcome)
        times.setdefault(length, {})[max(starts) // 136] = mean
        assert (state.step_seconds, state.chunk_seconds) == (0.5, times)


def with_times(
    state: SchedulerState, times: dict[int, dict[int, float]]
) -> SchedulerState:
    return dataclasses.replace(state, chunk_seconds=times)


@pytest.mark.parametrize(
    ("chunk_seconds", "length"),
    [
        ({}, 136),
        ({136: 0.2}, 136),
        ({136: 0.25}, 24),
        ({136: 0.25, 24: 0.06}, 24),
        ({136: 0.25, 24: 0.035}, 136),
        ({24: 0.3}, 24),
        ({24: 0.04}, 24),
        ({24: 0.04, 136: 0.2}, 136),
    ],
)
def test_a_chunk_takes_no_longer_than_it_may_while_somebody_reads_along(
    chunk_seconds: dict[int, float], length: int
) -> None:
    state = after(state_of(5, 700, streaming=True), 3)
    times = {known: {0: seconds} for known, seconds in chunk_seconds.items()}
    plan = next_plan(with_times(state, times))
    assert isinstance(plan, PrefillPlan)
    assert plan.time == length


@pytest.mark.parametrize(
    ("prompt", "seconds", "length"),
    [(272, 0.4, 136), (272, 0.41, 24), (273, 0.2, 136), (273, 0.21, 24)],
)
def test_a_chunk_of_a_short_prompt_may_take_twice_as_long(
    prompt: int, seconds: float, length: int
) -> None:
    state = after(state_of(5, prompt, streaming=True), 3)
    plan = next_plan(with_times(state, {136: {0: seconds}}))
    assert isinstance(plan, PrefillPlan)
    assert plan.time == length


def test_what_is_found_of_a_prompt_does_not_make_it_long() -> None:
    """Nor does the end of a long one make it short."""
    state = after(state_of(5, 700, streaming=True), 7)
    (long,) = (r for r in state.running if not r.is_decoding)
    for found, length in [(0, 24), (427, 24), (428, 136)]:
        rest = dataclasses.replace(long, prefilled=564, found=found)
        plan = next_plan(with_times(replaced(state, rest), {136: {0: 0.3}}))
        assert isinstance(plan, PrefillPlan)
        assert plan.time == length


def test_a_chunk_is_as_long_as_its_depth_allows() -> None:
    """Of a prompt whose first 408 tokens have run, three longest chunks."""
    state = after(state_of(5, 700, streaming=True), 7)
    (unfinished,) = (r for r in state.running if not r.is_decoding)
    assert unfinished.prefilled == 408
    plan = next_plan(with_times(state, {136: {2: 0.1, 3: 0.3}, 24: {3: 0.08}}))
    assert isinstance(plan, PrefillPlan)
    assert plan.time == 24


@pytest.mark.parametrize(
    ("prompts", "times", "expected"),
    [
        ((5, 138, 138), {136: 0.16, 24: 0.04}, "p pp d pp d"),
        ((5, 138, 138), {136: 0.16, 24: 0.05}, "p p d p d p d p d"),
        ((5, 138, 138), {}, "p p d p d p d p d"),
        ((5, 316), {136: 0.05, 24: 0.01}, "p p d p d pp d"),
        ((5, 5, 5, 5), {24: 0.01}, "p p d p d p d"),
    ],
)
def test_only_the_rest_of_a_prompt_goes_with_the_chunk_before_it(
    prompts: tuple[int, ...], times: dict[int, float], expected: str
) -> None:
    state = state_of(*prompts, streaming=True)
    state = with_times(state, {n: {0: seconds} for n, seconds in times.items()})
    found = ""
    for _ in expected.replace(" ", ""):
        plan, state = scheduler.plan(state, ENGINE, 0.0)
        found += "p" if isinstance(plan, PrefillPlan) else "d"
    assert all(r.is_decoding for r in state.running)
    assert not state.waiting
    assert found == expected.replace(" ", "")


def test_a_scored_prompt_takes_all_the_time_there_is() -> None:
    state = state_of(5, streaming=True)
    scored = QueuedRequest(
        request_id=1, tokens=tokens_of(1, 138), limit=1024, streaming=True, scored=True
    )
    state = scheduler.submit(after(state, 1), scored)
    state = with_times(state, {136: {0: 0.01}, 24: {0: 0.01}})
    kinds = []
    for _ in range(4):
        plan, state = scheduler.plan(state, ENGINE, 0.0)
        kinds.append(type(plan))
    assert kinds == [PrefillPlan, DecodePlan] * 2


def test_finished_requests_free_their_slots() -> None:
    plan, state = scheduler.plan(state_of(5, 5), ENGINE, 0.0)
    assert plan is not None
    outcome = outcome_of(plan, finished=frozenset({0}), steps=0, seconds=0.1)
    state = scheduler.absorb(state, ENGINE, plan, outcome)
    assert not state.running
    assert state.cache.num_used == 0
    assert state.cache.tree.match(tokens_of(0, 5)).length == 5


def test_releasing_who_is_gone_changes_nothing() -> None:
    state = after(state_of(5), 1)
    assert scheduler.release(state, ENGINE, [7]) == state


def test_requests_whose_time_is_up_are_told() -> None:
    state = state_of(5, 5)
    first, second = state.waiting
    late = dataclasses.replace(first, deadline=2.0)
    state = dataclasses.replace(state, waiting=(late, second))
    assert scheduler.expired(state.requests, 1.9) == ()
    assert scheduler.expired(state.requests, 2.0) == (0,)
