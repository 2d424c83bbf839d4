"""Every executable of a configuration against every other, bitwise.

A prompt is cut in any way into chunks of any of the padded lengths, in any slot, with
any neighbours, and answered in blocks of any length by any rung of the decode ladder,
or by prefill again: tokens and log-probabilities are always those of one plain way.
"""

import dataclasses
import functools
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxserver.adapters.engine.processor import compiler_options
from jaxserver.core.config import EngineConfig, ModelConfig
from jaxserver.core.executables import build_steps
from jaxserver.core.steps import Outcome
from jaxserver.ports.types import MAX_SEED, SamplingParams
from tests.stepping import Part, Stepper, Wish
from tests.tiny import TINY_LLAMA, tiny_model

MAX_LEN = 384
ENGINE = EngineConfig(slots=5, max_len=MAX_LEN, max_stream_tokens=8)
TIMES, RUNGS = ENGINE.prefill_lengths, ENGINE.decode_ladder
ODD = dataclasses.replace(
    TINY_LLAMA,
    num_layers=1,
    embed=40,
    mlp=56,
    num_heads=3,
    num_kv_heads=1,
    head_dim=24,
    tied=False,
    attention_bias=True,
    mlp_bias=True,
)
"""Sizes that no kernel likes."""

ANSWER = 6
SAMPLINGS = [
    SamplingParams(greedy=True, logprobs=20),
    SamplingParams(temperature=0.75, top_p=0.9, logprobs=20),
    SamplingParams(temperature=1.5, top_k=7, repetition_penalty=1.25, logprobs=0),
]


@functools.cache
def stepper_of(config: ModelConfig, kept: str) -> Stepper:
    fns, params, mesh = tiny_model(config, max_len=MAX_LEN, kept=kept)
    steps = build_steps(fns, params, ENGINE, mesh, compiler_options())
    return Stepper(steps, params, ENGINE)


class Drawn(NamedTuple):
    """A token, and all that is said of it."""

    token: int
    logprob: float
    top_ids: tuple[int, ...]
    top_logprobs: tuple[float, ...]


def entries(outcome: Outcome, row: int) -> list[Drawn]:
    return [
        Drawn(
            int(outcome.tokens[row, i]),
            float(outcome.logprobs[row, i]),
            tuple(np.asarray(outcome.top_ids)[row, i].tolist()),
            tuple(np.asarray(outcome.top_logprobs)[row, i].tolist()),
        )
        for i in range(int(outcome.counts[row]))
    ]


class Cut(NamedTuple):
    """A chunk's tokens, and the length that it is padded to."""

    length: int
    time: int


class Block(NamedTuple):
    """A dispatch that brings tokens of the answer; without rungs it is a prefill."""

    num_tokens: int
    rung: int


@st.composite
def cuts(draw: st.DrawFn, length: int) -> list[Cut]:
    pieces: list[Cut] = []
    while length:
        time = draw(st.sampled_from(TIMES))
        full = min(time, length)
        piece = draw(st.just(full) | st.integers(1, full))
        pieces.append(Cut(piece, time))
        length -= piece
    return pieces


def blocks(slot: int) -> st.SearchStrategy[list[Block]]:
    """Ladder rungs that reach the slot, or 0 for a prefill of the last token."""
    rungs = st.sampled_from([0, *(rung for rung in RUNGS if rung > slot)])
    one = st.builds(Block, st.integers(1, ANSWER), rungs)
    return st.lists(one, min_size=ANSWER, max_size=ANSWER)


def run_prompt(stepper: Stepper, wish: Wish, slot: int, pieces: list[Cut]) -> Outcome:
    start = 0
    for piece in pieces:
        part = Part(wish=wish, slot=slot, start=start, end=start + piece.length)
        outcome = stepper.prefill(part, time=piece.time)
        start += piece.length
    return outcome


def answered(
    stepper: Stepper, wish: Wish, slot: int, pieces: list[Cut], plan: list[Block]
) -> list[Drawn]:
    found = entries(run_prompt(stepper, wish, slot, pieces), 0)
    for block in plan:
        if len(found) >= ANSWER:
            break
        if block.rung:
            outcome = stepper.decode(block.rung, block.num_tokens)
            found += entries(outcome, slot)
        else:
            found += entries(run_last(stepper, wish, slot, found), 0)
    return found[:ANSWER]


def run_last(stepper: Stepper, wish: Wish, slot: int, found: list[Drawn]) -> Outcome:
    """Prefills the newest token as if it had been the prompt's."""
    tokens = (*wish.prompt, *(entry.token for entry in found))
    longer = dataclasses.replace(wish, prompt=tokens)
    part = Part(wish=longer, slot=slot, start=len(tokens) - 1)
    return stepper.prefill(part, time=TIMES[len(found) % len(TIMES)])


def wish_of(seed: int, length: int, sampling: SamplingParams) -> Wish:
    tokens = np.random.default_rng(seed % 2**32).integers(0, 64, length).tolist()
    return Wish(prompt=tuple(tokens), limit=MAX_LEN, sampling=sampling, seed=seed)


@pytest.mark.parametrize("config", [TINY_LLAMA, ODD], ids=["tiny", "odd"])
@given(
    kept=st.sampled_from(["float32", "int8"]),
    seed=st.integers(0, MAX_SEED - ENGINE.slots),
    length=st.integers(1, 140) | st.sampled_from([272, 273, 300]),
    sampling=st.sampled_from(SAMPLINGS),
    slot=st.integers(0, ENGINE.slots - 1),
    company=st.integers(0, ENGINE.slots - 1),
    data=st.data(),
)
def test_every_way_to_an_answer_gives_the_same_bits(
    config: ModelConfig,
    kept: str,
    seed: int,
    length: int,
    sampling: SamplingParams,
    slot: int,
    company: int,
    data: st.DataObject,
) -> None:
    stepper, wish = stepper_of(config, kept), wish_of(seed, length, sampling)
    longest = TIMES[-1]
    starts = range(0, length, longest)
    plain = [Cut(min(longest, length - at), longest) for at in starts]
    stepper.clear()
    expected = answered(stepper, wish, 0, plain, [Block(ANSWER, RUNGS[0])])
    assert len(expected) == ANSWER

    stepper.clear()
    others = [other for other in range(ENGINE.slots) if other != slot][:company]
    for other in others:
        neighbour = wish_of(seed + other + 1, 20 + other, SAMPLINGS[other % 3])
        stepper.prefill(Part(wish=neighbour, slot=other))
    plan = data.draw(blocks(slot))
    found = answered(stepper, wish, slot, data.draw(cuts(length)), plan)
    assert found == expected[: len(found)]
    assert len(found) == ANSWER
