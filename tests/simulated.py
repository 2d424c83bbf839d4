"""A device that keeps tokens where a real one keeps what was made of them.

Every step checks that the pages it is given hold the tokens that they should.
"""

import dataclasses

from jaxserver.core.config import EngineConfig
from jaxserver.core.prefix_tree import Tokens
from jaxserver.core.schedule import Chunk, DecodePlan, Outcome, Plan, PrefillPlan

VOCAB = 3
"""Few tokens, so that prompts and answers begin alike by chance."""


@dataclasses.dataclass(kw_only=True)
class Asked:
    """A request, and its one right answer."""

    prompt: Tokens
    answer: Tokens

    @property
    def whole(self) -> Tokens:
        return (*self.prompt, *self.answer)


@dataclasses.dataclass(kw_only=True)
class Row:
    """What a slot of the device knows."""

    request_id: int
    tokens: Tokens = ()
    is_active: bool = False


class SimulatedDevice:
    """Runs every dispatch at once and in order."""

    def __init__(self, engine: EngineConfig, asked: dict[int, Asked]) -> None:
        self.engine = engine
        self.asked = asked
        self.pages: dict[tuple[int, int], int] = {}
        self.rows: dict[int, Row] = {}

    def run(self, plan: Plan, step_seconds: float) -> Outcome:
        if isinstance(plan, PrefillPlan):
            return self._prefill(plan, step_seconds)
        return self._decode(plan, step_seconds)

    def _prefill(self, plan: PrefillPlan, seconds: float) -> Outcome:
        assert plan.time in self.engine.prefill_lengths
        assert len(plan.chunks) <= self.engine.prefill_rows
        assert len({c.slot for c in plan.chunks}) == len(plan.chunks)
        for chunk in plan.chunks:
            self._find(chunk)
        drawn = {c.request_id: self._run(c, plan.time) for c in plan.chunks}
        return self._outcome(drawn, 0, seconds)

    def _find(self, chunk: Chunk) -> None:
        if chunk.seat is None:
            return
        copy, held = chunk.seat.copy, chunk.seat.held
        assert len(held) == chunk.start
        for offset in range(copy.length if copy else 0):
            assert copy is not None
            content = self.pages[copy.source, offset]
            self.pages[copy.target, offset] = content
        self.rows[chunk.slot] = Row(request_id=chunk.request_id, tokens=held)

    def _run(self, chunk: Chunk, time: int) -> Tokens:
        row, asked = self.rows[chunk.slot], self.asked[chunk.request_id]
        assert row.request_id == chunk.request_id
        assert 0 < chunk.length <= time
        assert len(row.tokens) == chunk.start
        if self.engine.has_whole_rows:
            assert chunk.pages == (chunk.slot,)
        if self.engine.chunk is not None:
            assert chunk.start % self.engine.chunk == 0
        row.tokens += chunk.tokens
        assert asked.whole[: len(row.tokens)] == row.tokens
        self._write(row, chunk.start, chunk.pages)
        self._check(row, chunk.pages)
        row.is_active = False
        return self._draw(row, 1) if chunk.is_last else ()

    def _decode(self, plan: DecodePlan, seconds: float) -> Outcome:
        assert 1 <= plan.num_tokens <= self.engine.max_stream_tokens
        assert plan.rows in self.engine.decode_ladder
        assert max(plan.requests) < plan.rows
        drawn: dict[int, Tokens] = {}
        for slot, request_id in plan.requests.items():
            row = self.rows[slot]
            assert row.request_id == request_id
            begin = len(row.tokens)
            drawn[request_id] = (
                self._draw(row, plan.num_tokens) if row.is_active else ()
            )
            if drawn[request_id]:
                last = row.tokens[-1]
                held = Row(request_id=request_id, tokens=row.tokens[:-1])
                self._write(held, begin - 1, plan.pages[slot])
                self._check(held, plan.pages[slot])
                assert row.tokens == (*held.tokens, last)
        steps = max(len(tokens) for tokens in drawn.values())
        return self._outcome(drawn, steps, steps * seconds)

    def _draw(self, row: Row, count: int) -> Tokens:
        whole, held = self.asked[row.request_id].whole, len(row.tokens)
        new = whole[held : held + count]
        row.tokens += new
        row.is_active = len(row.tokens) < len(whole)
        return new

    def _write(self, row: Row, start: int, pages: Tokens) -> None:
        size = self.engine.page_size
        for position in range(start, len(row.tokens)):
            place = (pages[position // size], position % size)
            self.pages[place] = row.tokens[position]

    def _check(self, row: Row, pages: Tokens) -> None:
        size = self.engine.page_size
        found = tuple(
            self.pages[pages[position // size], position % size]
            for position in range(len(row.tokens))
        )
        assert found == row.tokens

    def _outcome(self, drawn: dict[int, Tokens], steps: int, seconds: float) -> Outcome:
        ended = {
            row.request_id
            for row in self.rows.values()
            if row.tokens == self.asked[row.request_id].whole
        }
        return Outcome(
            drawn=drawn,
            finished=frozenset(ended & drawn.keys()),
            unsound=frozenset(),
            steps=steps,
            seconds=seconds,
        )
