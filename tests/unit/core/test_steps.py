import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxserver.core import steps
from jaxserver.core.config import EngineConfig
from jaxserver.core.decode import BlockSizes, decode
from jaxserver.core.decode_state import init_state
from jaxserver.core.executables import build_steps
from jaxserver.core.sampling import choose_rows
from jaxserver.core.sampling_arrays import History
from jaxserver.core.sharding import make_mesh
from jaxserver.core.steps import LENGTH, RUNNING, STOP, UNSOUND
from jaxserver.ports.types import SamplingParams
from tests.counting_model import POISON, answer_of, counting_model
from tests.stepping import Part, Stepper, Wish, block_of, chunk_of, drawn

MAX_LEN, BLOCK = 64, 8
ENGINE = EngineConfig(slots=6, prefill_rows=2, max_len=MAX_LEN, max_stream_tokens=BLOCK)
FNS = counting_model(MAX_LEN)
PARAMS = jnp.float32(10)
PROMPT = (1, 2, 3)
ANSWER = answer_of([1, 2, 3], 20)


@functools.cache
def compiled() -> Stepper:
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        mesh = make_mesh((1, 1, 1), ("dp", "fsdp", "mp"), jax.devices()[:1])
        params = jax.device_put(PARAMS, jax.sharding.NamedSharding(mesh, jax.P()))
        built = build_steps(FNS, params, ENGINE, mesh)
        stepper = Stepper(built, params, ENGINE)
        for rows in ENGINE.decode_ladder:
            stepper.get("decode", rows)
        stepper.get("prefill", 24)
    return stepper


@pytest.fixture
def stepper() -> Stepper:
    shared = compiled()
    shared.clear()
    return shared


def row_of(stepper: Stepper, slot: int) -> list[int]:
    """The tokens a slot holds."""
    length = int(stepper.state.lengths[slot])
    tokens: list[int] = np.asarray(stepper.state.tokens)[slot, :length].tolist()
    return tokens


def test_the_list_of_executables_follows_from_the_configuration() -> None:
    built = compiled()._steps
    assert tuple(built.prefill) == ENGINE.prefill_lengths == (24, 128)
    assert tuple(built.decode) == ENGINE.decode_ladder == (1, 4, 6)


def test_a_prompts_end_brings_the_first_token(stepper: Stepper) -> None:
    outcome = stepper.prefill(Part(wish=Wish(prompt=PROMPT), slot=2))
    assert drawn(outcome, 0) == ANSWER[:1]
    assert outcome.ends.tolist() == [RUNNING, RUNNING]
    assert row_of(stepper, 2) == [*PROMPT, ANSWER[0]]
    assert np.flatnonzero(stepper.state.active).tolist() == [2]


def test_a_chunk_that_is_not_the_last_chooses_nothing(stepper: Stepper) -> None:
    wish = Wish(prompt=PROMPT)
    outcome = stepper.prefill(Part(wish=wish, slot=1, end=2))
    assert outcome.counts.tolist() == [0, 0]
    assert not stepper.state.active.any()
    outcome = stepper.prefill(Part(wish=wish, slot=1, start=2))
    assert drawn(outcome, 0) == ANSWER[:1]
    assert row_of(stepper, 1) == [*PROMPT, ANSWER[0]]


def test_prompts_are_prefilled_together_each_in_its_slot(stepper: Stepper) -> None:
    outcome = stepper.prefill(
        Part(wish=Wish(prompt=(5,)), slot=5), Part(wish=Wish(prompt=PROMPT), slot=0)
    )
    assert [drawn(outcome, row) for row in range(2)] == [[5], ANSWER[:1]]
    assert row_of(stepper, 5) == [5, 5]
    assert row_of(stepper, 0) == [*PROMPT, ANSWER[0]]


def test_rows_of_padding_change_no_slot(stepper: Stepper) -> None:
    before = jax.tree.map(np.asarray, stepper.state)
    stepper.prefill(Part(wish=Wish(prompt=PROMPT), slot=3))
    after: Any = jax.tree.map(np.asarray, stepper.state)
    others = [0, 1, 2, 4, 5]
    chex.assert_trees_all_equal(
        jax.tree.map(lambda leaf: leaf[others], before),
        jax.tree.map(lambda leaf: leaf[others], after),
    )


def test_a_block_goes_on_where_the_prompt_ended(stepper: Stepper) -> None:
    stepper.prefill(Part(wish=Wish(prompt=PROMPT), slot=0))
    outcome = stepper.decode(4, 3)
    assert drawn(outcome, 0) == ANSWER[1:4]
    assert outcome.counts.tolist() == [3, 0, 0, 0]
    assert outcome.steps == 3
    assert row_of(stepper, 0) == [*PROMPT, *ANSWER[:4]]
    assert drawn(stepper.decode(6, 5), 0) == ANSWER[4:9]


def test_a_block_is_never_longer_than_it_was_compiled_for(stepper: Stepper) -> None:
    stepper.prefill(Part(wish=Wish(prompt=PROMPT), slot=0))
    outcome = stepper.decode(4, 1000)
    assert outcome.steps == BLOCK
    assert drawn(outcome, 0) == ANSWER[1 : 1 + BLOCK]


def test_an_end_token_ends_a_row_and_counts(stepper: Stepper) -> None:
    wish = Wish(prompt=PROMPT, end_ids=(14, ANSWER[3]))
    assert ANSWER.index(ANSWER[3]) == 3
    stepper.prefill(Part(wish=wish, slot=0))
    stepper.prefill(Part(wish=Wish(prompt=(1,)), slot=1))
    outcome = stepper.decode(4, 6)
    assert outcome.ends.tolist() == [STOP, RUNNING, RUNNING, RUNNING]
    assert drawn(outcome, 0) == ANSWER[1:4]
    assert outcome.counts.tolist() == [3, 6, 0, 0]
    assert np.flatnonzero(stepper.state.active).tolist() == [1]


def test_a_block_ends_early_when_every_row_has(stepper: Stepper) -> None:
    for slot, limit in ((0, 6), (1, 5)):
        stepper.prefill(Part(wish=Wish(prompt=PROMPT, limit=limit), slot=slot))
    outcome = stepper.decode(4, 8)
    assert outcome.steps == 2
    assert outcome.counts.tolist() == [2, 1, 0, 0]
    assert outcome.ends.tolist() == [LENGTH, LENGTH, RUNNING, RUNNING]
    assert stepper.decode(4, 8).steps == 0


def test_the_first_token_can_be_the_last(stepper: Stepper) -> None:
    ends = (ANSWER[0],)
    outcome = stepper.prefill(
        Part(wish=Wish(prompt=PROMPT, end_ids=ends, limit=4), slot=0),
        Part(wish=Wish(prompt=PROMPT, limit=4), slot=1),
    )
    assert outcome.ends.tolist() == [STOP, LENGTH]
    assert outcome.counts.tolist() == [1, 1]
    assert not stepper.state.active.any()


def test_the_last_place_of_a_row_can_be_filled(stepper: Stepper) -> None:
    prompt = tuple([1] * (MAX_LEN - 2))
    stepper.prefill(
        Part(wish=Wish(prompt=prompt, limit=MAX_LEN), slot=0, end=30), time=128
    )
    stepper.prefill(
        Part(wish=Wish(prompt=prompt, limit=MAX_LEN), slot=0, start=30), time=128
    )
    outcome = stepper.decode(4, 8)
    assert drawn(outcome, 0) == answer_of([*prompt], 2)[1:]
    assert outcome.ends[0] == LENGTH
    assert len(row_of(stepper, 0)) == MAX_LEN


def test_slots_that_are_not_kept_are_released(stepper: Stepper) -> None:
    for slot in (0, 1, 5):
        stepper.prefill(Part(wish=Wish(prompt=PROMPT), slot=slot))
    outcome = stepper.decode(4, 2, keep=[1])
    assert outcome.counts.tolist() == [0, 2, 0, 0]
    assert np.flatnonzero(stepper.state.active).tolist() == [1]


def test_slots_above_the_rows_of_a_block_wait_unchanged(stepper: Stepper) -> None:
    for slot in (0, 5):
        stepper.prefill(Part(wish=Wish(prompt=PROMPT), slot=slot))
    stepper.decode(4, 3)
    assert row_of(stepper, 5) == [*PROMPT, ANSWER[0]]
    outcome = stepper.decode(6, 3)
    assert drawn(outcome, 5) == ANSWER[1:4]


def test_a_row_without_sound_logits_fails_alone(stepper: Stepper) -> None:
    stepper.prefill(Part(wish=Wish(prompt=PROMPT), slot=0))
    outcome = stepper.prefill(Part(wish=Wish(prompt=(1, POISON)), slot=1))
    assert outcome.ends.tolist() == [UNSOUND, RUNNING]
    assert outcome.counts.tolist() == [0, 0]
    bias = SamplingParams(greedy=True, logit_bias={POISON: 100.0})
    stepper.prefill(Part(wish=Wish(prompt=(1,), sampling=bias), slot=2))
    outcome = stepper.decode(4, 4)
    assert outcome.ends.tolist() == [RUNNING, RUNNING, UNSOUND, RUNNING]
    assert outcome.counts.tolist() == [4, 0, 0, 0]
    assert drawn(outcome, 0) == ANSWER[1:5]
    assert np.flatnonzero(stepper.state.active).tolist() == [0]


def test_a_slot_is_used_again_as_if_it_were_new(stepper: Stepper) -> None:
    stepper.prefill(Part(wish=Wish(prompt=(9, 9, 9, 9, POISON)), slot=0))
    stepper.prefill(Part(wish=Wish(prompt=PROMPT), slot=0))
    assert drawn(stepper.decode(4, 8), 0) == ANSWER[1:9]


def test_logprobs_are_reported_to_who_asked(stepper: Stepper) -> None:
    asking = Wish(prompt=PROMPT, sampling=SamplingParams(greedy=True, logprobs=2))
    stepper.prefill(Part(wish=asking, slot=0))
    stepper.prefill(Part(wish=Wish(prompt=PROMPT), slot=1))
    outcome = stepper.decode(4, 2)
    expected = 10 - np.log(np.exp(10) + 15)
    np.testing.assert_allclose(outcome.logprobs[0, :2], expected, atol=1e-5)
    assert outcome.top_ids[0, :2, 0].tolist() == ANSWER[1:3]
    assert not outcome.logprobs[1].any()


def test_the_state_comes_out_as_it_went_in_and_is_consumed(stepper: Stepper) -> None:
    empty: Any = jax.eval_shape(lambda: init_state(FNS, ENGINE.slots, ENGINE.slots))
    chex.assert_trees_all_equal_shapes_and_dtypes(stepper.state, empty)
    first = stepper.state
    stepper.prefill(Part(wish=Wish(prompt=PROMPT), slot=0))
    chex.assert_trees_all_equal_shapes_and_dtypes(stepper.state, empty)
    second = stepper.state
    stepper.decode(4, 2)
    chex.assert_trees_all_equal_shapes_and_dtypes(stepper.state, empty)
    assert first.cache.is_deleted()
    assert second.cache.is_deleted()


WISHES = [
    Wish(prompt=PROMPT),
    Wish(prompt=(4,), sampling=SamplingParams(temperature=0.5, top_p=0.5), seed=2**60),
    Wish(prompt=(5, 6), sampling=SamplingParams(temperature=1.0, logprobs=3, top_k=3)),
    Wish(prompt=(7,), sampling=SamplingParams(logit_bias={3: 1.0}), end_ids=(1, 2)),
]


@pytest.mark.usefixtures("strict_jax")
def test_one_trace_serves_every_mix_of_requests_and_length_of_block() -> None:
    def prefill(*arguments: Any) -> Any:
        state, prefilled = steps.prefill(FNS, *arguments)
        return steps.begin(FNS, state, arguments[-1].beginning, prefilled)

    def run_block(*arguments: Any) -> Any:
        return decode(FNS, BlockSizes(4, BLOCK), *arguments)

    run_prefill = jax.jit(chex.assert_max_traces(prefill, n=1))
    run_decode = jax.jit(chex.assert_max_traces(run_block, n=1))
    state: Any = init_state(FNS, ENGINE.slots, ENGINE.slots)
    for slot, wish in enumerate(WISHES):
        chunk = chunk_of([Part(wish=wish, slot=slot)], ENGINE, 24)
        state, _ = run_prefill(PARAMS, state, chunk)
        keep = np.arange(ENGINE.slots) != slot - 1
        block = block_of(slot + 1, keep)
        state, outcome = run_decode(PARAMS, state, block)
        assert outcome.counts[slot] > 0


def test_choosing_sorts_no_vocabulary() -> None:
    rows: Any = jax.eval_shape(lambda: init_state(FNS, 4, 4))
    logits = jax.ShapeDtypeStruct((4, 49_152), jnp.float32)
    history = (rows.tokens, rows.rows.prompt_length, rows.lengths)
    chosen = jax.jit(
        lambda x, sampling, held, wanted: choose_rows(
            x, sampling, History(*held), wanted
        )
    )
    lowered = chosen.lower(logits, rows.rows.sampling, history, rows.active)
    compiled_text = lowered.compile().as_text() or ""
    assert "TopK" in compiled_text
    assert " sort(" not in compiled_text


def test_steps_run_on_a_mesh_of_four_devices_as_on_one() -> None:
    mesh = make_mesh((2, 1, 2), ("dp", "fsdp", "mp"), jax.devices()[:4])
    params = jax.device_put(PARAMS, jax.sharding.NamedSharding(mesh, jax.P()))
    built = build_steps(FNS, params, ENGINE, mesh)
    on_four = Stepper(built, params, ENGINE)
    wish = Wish(prompt=PROMPT, sampling=SamplingParams(temperature=3.0, logprobs=1))
    on_four.prefill(Part(wish=wish, slot=0))
    shared = compiled()
    shared.clear()
    shared.prefill(Part(wish=wish, slot=0))
    assert drawn(on_four.decode(6, 6), 0) == drawn(shared.decode(6, 6), 0)
