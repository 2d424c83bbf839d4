"""On the default model, every executable gives a token the same bits as every other."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from jaxserver import JAXServer, SamplingParams, wiring
from jaxserver.adapters.engine.host_arrays import prefill_chunk
from jaxserver.adapters.engine.requests import TokenRequest
from jaxserver.core.schedule import Chunk, PrefillPlan
from jaxserver.core.steps import Outcome
from jaxserver.ports.progress import no_progress
from tests.stepping import block_of

pytestmark = pytest.mark.model
ANSWER = 6
PROMPT_LENGTH = 300
SAMPLING = SamplingParams(temperature=0.9, top_k=0, top_p=0.95, logprobs=20)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Way:
    """One way to the same answer.

    Attributes:
        cuts: The prompt's chunks as (tokens that count, padded length).
        slot: Where it runs.
        rows: The decode executable, or None where each token of the answer is run by a
            prefill as well.
        block: Decode steps per dispatch.
        neighbours: Other prompts that run beside it.
    """

    cuts: tuple[tuple[int, int], ...]
    slot: int = 0
    rows: int | None = 4
    block: int = 32
    neighbours: int = 0


LONGEST_FIRST = ((136, 136), (136, 136), (24, 24), (4, 24))
WAYS = {
    "longest first": Way(cuts=LONGEST_FIRST),
    "136 only": Way(cuts=((136, 136), (136, 136), (28, 136)), slot=3, block=1),
    "alone": Way(cuts=LONGEST_FIRST, rows=1),
    "24 only": Way(cuts=((24, 24),) * 12 + ((12, 24),), slot=5, rows=8, block=2),
    "10 at a time": Way(cuts=((10, 24),) * 30, slot=1, rows=4, block=3),
    "uneven": Way(
        cuts=((5, 24), (100, 136), (90, 136), (104, 136), (1, 24)), slot=15, rows=16
    ),
    "in company": Way(cuts=LONGEST_FIRST, slot=2, rows=4, neighbours=2),
    "in a crowd": Way(cuts=((100, 136),) * 3, slot=9, rows=16, neighbours=9),
    "by prefill of 24": Way(cuts=LONGEST_FIRST, rows=None, block=24),
    "by prefill of 136": Way(cuts=LONGEST_FIRST, rows=None, block=136),
}


class Runner:
    """Calls compiled steps by hand, of more slots than a lane of the server has."""

    def __init__(self, server: JAXServer) -> None:
        assert server._host.model is not None
        sizes = dataclasses.replace(server._host.model.engine, slots=16, lanes=1)
        model = server._host.model._replace(engine=sizes)
        config = dataclasses.replace(server.config, pre_compile=False)
        self.params, self.engine = model.params, sizes
        self.get = wiring.compile_model(model, config, no_progress).get
        self.state: Any = self.get("init", 0)()

    def prefill(
        self, tokens: Sequence[int], slot: int, chunk: tuple[int, int, int], last: bool
    ) -> Outcome:
        start, length, time = chunk
        request = TokenRequest(
            request_id=0,
            prompt=tuple(tokens),
            held=len(tokens),
            sampling=SAMPLING,
            seed=2**50 + 1,
            limit=PROMPT_LENGTH + ANSWER,
            end_ids=frozenset(),
            streaming=False,
        )
        part = Chunk(
            request_id=0,
            slot=slot,
            start=start,
            tokens=tuple(tokens[start : start + length]),
            is_last=last,
            pages=(slot,),
            seat=None,
        )
        arrays = prefill_chunk(
            PrefillPlan((part,), time), {0: request}, self.engine, {}
        )
        run, begin = self.get("prefill", time), self.get("begin", 0)
        outcome: Outcome
        state, prefilled = run(self.params, self.state, arrays)
        unscored = prefilled._replace(scores=None)
        self.state, outcome = begin(state, arrays.beginning, unscored)
        return outcome

    def decode(self, rows: int, block: int) -> Outcome:
        keep = np.ones(self.engine.slots, np.bool_)
        run, outcome = self.get("decode", rows), None
        self.state, outcome = run(self.params, self.state, block_of(block, keep))
        assert isinstance(outcome, Outcome)
        return outcome


def answer(runner: Runner, prompt: Sequence[int], way: Way) -> list[tuple[Any, ...]]:
    """Every drawn token with its log-probability and the twenty likeliest."""
    start, drawn = 0, []
    for length, time in way.cuts:
        last = start + length == PROMPT_LENGTH
        outcome = runner.prefill(prompt, way.slot, (start, length, time), last)
        start += length
    drawn += entries(outcome, 0)
    tokens = list(prompt)
    while len(drawn) < ANSWER:
        if way.rows is None:
            tokens.append(drawn[-1][0])
            chunk = (len(tokens) - 1, 1, way.block)
            drawn += entries(runner.prefill(tokens, way.slot, chunk, True), 0)
        else:
            drawn += entries(runner.decode(way.rows, way.block), way.slot)
    return drawn


def entries(outcome: Outcome, row: int) -> list[tuple[Any, ...]]:
    return [
        (
            int(outcome.tokens[row, i]),
            float(outcome.logprobs[row, i]),
            tuple(np.asarray(outcome.top_ids[row, i]).tolist()),
            tuple(np.asarray(outcome.top_logprobs[row, i]).tolist()),
        )
        for i in range(int(outcome.counts[row]))
    ]


def test_every_executable_agrees_with_every_other(loaded_server: JAXServer) -> None:
    runner = Runner(loaded_server)
    rng = np.random.default_rng(0)
    prompt = rng.integers(5, 40_000, PROMPT_LENGTH).tolist()
    others = rng.integers(5, 40_000, (16, 40)).tolist()

    answers = {}
    for name, way in WAYS.items():
        for neighbour in range(way.neighbours):
            slot = neighbour if neighbour < way.slot else neighbour + 1
            runner.prefill(others[neighbour], slot, (0, 40, 136), True)
        answers[name] = answer(runner, prompt, way)

    first = answers["longest first"]
    assert len(first) == ANSWER
    for name, found in answers.items():
        assert found == first, name
