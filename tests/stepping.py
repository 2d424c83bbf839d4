"""Calls the compiled steps by hand, one request a slot."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.stages import Compiled

from jaxserver.core.config import EngineConfig
from jaxserver.core.decode import Block
from jaxserver.core.decode_state import MAX_ALL_END_IDS, DecodeState, RowArrays
from jaxserver.core.executables import Steps
from jaxserver.core.sampling_arrays import sampling_row
from jaxserver.core.steps import Outcome, PrefillChunk
from jaxserver.ports.model import Params
from jaxserver.ports.types import SamplingParams

HostArray = np.ndarray[Any, np.dtype[Any]]


GREEDY = SamplingParams(greedy=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wish:
    """A request as the device sees it."""

    prompt: tuple[int, ...]
    limit: int = 60
    end_ids: tuple[int, ...] = ()
    sampling: SamplingParams = GREEDY
    seed: int = 0

    def rows(self) -> RowArrays:
        end_ids = np.full(MAX_ALL_END_IDS, -1, np.int32)
        end_ids[: len(self.end_ids)] = self.end_ids
        arrays: dict[str, Any] = dict(
            prompt_length=np.int32(len(self.prompt)),
            limit=np.int32(self.limit),
            end_ids=end_ids,
        )
        sampling = sampling_row(self.sampling, self.seed)
        return RowArrays(**arrays, sampling=sampling, processors={})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """A piece of a prompt, the rest of it unless told where to end."""

    wish: Wish
    slot: int
    start: int = 0
    end: int | None = None

    @property
    def tokens(self) -> tuple[int, ...]:
        return self.wish.prompt[self.start : self.end]

    @property
    def is_last(self) -> bool:
        return self.end is None or self.end == len(self.wish.prompt)


def chunk_of(parts: Sequence[Part], engine: EngineConfig, time: int) -> PrefillChunk:
    """Pads in time with tokens that mean nothing, and in rows with rows that do not."""
    count = engine.prefill_rows
    arrays: dict[str, Any] = dict(
        tokens=np.full((count, time), 3, np.int32),
        slots=np.full(count, engine.slots, np.int32),
        pages=np.zeros((count, 1), np.int32),
        start=np.zeros(count, np.int32),
        length=np.zeros(count, np.int32),
        is_last=np.zeros(count, np.bool_),
    )
    if time == engine.score_length:
        arrays["targets"] = np.full((count, time), -1, np.int32)
    for row, part in enumerate(parts):
        arrays["tokens"][row, : len(part.tokens)] = part.tokens
        arrays["slots"][row], arrays["start"][row] = part.slot, part.start
        arrays["pages"][row] = part.slot
        arrays["length"][row] = len(part.tokens)
        arrays["is_last"][row] = part.is_last
    padded = [*parts, *[parts[0]] * (count - len(parts))]
    rows = [part.wish.rows() for part in padded]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *rows)
    return PrefillChunk(**arrays, rows=stacked)


def block_of(num_tokens: int, keep: HostArray) -> Block:
    """Over rows that are pages of the same number."""
    arrays: dict[str, Any] = dict(
        keep=keep, num_tokens=np.int32(num_tokens), pages=None
    )
    return Block(**arrays)


class Stepper:
    """The executables of one configuration, each compiled when it is first wanted."""

    def __init__(self, steps: Steps, params: Params, engine: EngineConfig) -> None:
        self._steps = steps
        self._compiled: dict[tuple[str, int], Compiled] = {}
        self.params = params
        self.engine = engine
        self.state: DecodeState = self.empty()

    def get(self, kind: str, size: int) -> Compiled:
        build: Callable[[], Compiled] = getattr(self._steps, kind)[size]
        if (kind, size) not in self._compiled:
            self._compiled[kind, size] = build()
        return self._compiled[kind, size]

    @functools.cached_property
    def empty(self) -> Compiled:
        return self._steps.init()

    @functools.cached_property
    def begin(self) -> Compiled:
        return self._steps.begin()

    def clear(self) -> None:
        self.state = self.empty()

    def prefill(self, *parts: Part, time: int = 24) -> Outcome:
        chunk = chunk_of(parts, self.engine, time)
        run = self.get("prefill", time)
        state, prefilled = run(self.params, self.state, chunk)
        unscored = prefilled._replace(scores=None)
        self.state, outcome = self.begin(state, chunk.beginning, unscored)
        host: Outcome = jax.tree.map(np.asarray, outcome)
        return host

    def decode(
        self, rows: int, num_tokens: int, keep: Sequence[int] | None = None
    ) -> Outcome:
        flags = np.ones(self.engine.slots, np.bool_)
        if keep is not None:
            flags[:] = np.isin(np.arange(self.engine.slots), keep)
        run = self.get("decode", rows)
        block = block_of(num_tokens, flags)
        self.state, outcome = run(self.params, self.state, block)
        host: Outcome = jax.tree.map(np.asarray, outcome)
        return host


def drawn(outcome: Outcome, row: int) -> list[int]:
    """The tokens that a row chose."""
    tokens: list[int] = np.asarray(outcome.tokens)[row, : outcome.counts[row]].tolist()
    return tokens
