"""Turns a plan into a call of an executable, and its outcome into events."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxserver.adapters.engine.compiling import CompiledSteps
from jaxserver.adapters.engine.orders import Order, Orders
from jaxserver.adapters.engine.requests import Logprobs, TokenEvent, TokenRequest
from jaxserver.core import steps
from jaxserver.core.config import EngineConfig
from jaxserver.core.decode_state import MAX_ALL_END_IDS, DecodeState, RowArrays
from jaxserver.core.sampling_arrays import sampling_row
from jaxserver.core.scheduler import DecodePlan, PrefillPlan
from jaxserver.ports.errors import EngineFailed, JaxServerError
from jaxserver.ports.model import Params
from jaxserver.ports.types import FinishReason

_FINISH = {steps.STOP: FinishReason.STOP, steps.LENGTH: FinishReason.LENGTH}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Dispatch:
    """A step that has been handed to the device.

    Attributes:
        requests: Which request is in which row of the outcome.
        outcome: Arrays that may not be there yet.
    """

    requests: Mapping[int, int]
    outcome: steps.Outcome
    is_decode: bool
    started_seconds: float


class Arrival(NamedTuple):
    """An outcome that has come.

    Attributes:
        events: What it brought the requests that are still wanted.
        steps: How many steps were run.
    """

    events: list[TokenEvent]
    steps: int


class Device:
    """The weights, the state of the slots, and the executables that change it."""

    def __init__(
        self,
        compiled: CompiledSteps,
        params: Params,
        engine: EngineConfig,
        orders: Orders,
    ) -> None:
        """Makes an empty state.

        Args:
            compiled: The executables.
            params: The weights.
            engine: The sizes.
            orders: Hears of everything before it is run.
        """
        self.orders = orders
        self._compiled = compiled
        self._params = params
        self._engine = engine
        self._state: DecodeState = compiled.get("init", 0)()

    def reset(self) -> None:
        """Makes an empty state in place of one that a failed dispatch consumed."""
        order = Order("init", 0)
        self.orders.give(order)
        self.follow(order)

    def connect(self) -> None:
        """Runs a prefill of nothing, so that the devices of all processes are joined.

        The first collective of a kind would wait long for a process that is lost.
        """
        time = self._engine.prefill_lengths[0]
        shapes = self._compiled.steps.inputs("prefill", time)
        (chunk,) = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
        nowhere = np.full_like(chunk.slots, self._engine.slots)
        self._order(Order("prefill", time, (chunk._replace(slots=nowhere),)))

    def follow(self, order: Order) -> None:
        """Runs what another process has ordered; its outcome is that one's to read."""
        if order.kind == "init":
            del self._state  # there is no memory for two
            self._state = self._compiled.get("init", 0)()
        else:
            self._run(order)

    def _order(self, order: Order) -> steps.Outcome:
        self.orders.give(order)
        return self._run(order)

    def _run(self, order: Order) -> steps.Outcome:
        executable = self._compiled.get(order.kind, order.size)
        outcome: steps.Outcome
        self._state, outcome = executable(self._params, self._state, *order.inputs)
        return outcome

    def prefill(
        self, plan: PrefillPlan, requests: Mapping[int, TokenRequest], now: float
    ) -> Dispatch:
        """Starts a prefill; its outcome's rows are the plan's chunks."""
        chunk = prefill_chunk(plan, requests, self._engine)
        outcome = self._order(Order("prefill", plan.time, (chunk,)))
        rows = {row: c.request_id for row, c in enumerate(plan.chunks)}
        return Dispatch(
            requests=rows, outcome=outcome, is_decode=False, started_seconds=now
        )

    def decode(self, plan: DecodePlan, now: float) -> Dispatch:
        """Starts a decode block; its outcome's rows are slots."""
        keep = np.zeros(self._engine.slots, np.bool_)
        keep[list(plan.requests)] = True
        count = np.int32(plan.num_steps)
        outcome = self._order(Order("decode", plan.rows, (keep, count)))
        return Dispatch(
            requests=plan.requests, outcome=outcome, is_decode=True, started_seconds=now
        )


def prefill_chunk(
    plan: PrefillPlan, requests: Mapping[int, TokenRequest], engine: EngineConfig
) -> steps.PrefillChunk:
    """The host arrays of a prefill, padded in rows and in time."""
    count = engine.prefill_rows
    slots = np.full(count, engine.slots, np.int32)
    tokens = np.zeros((count, plan.time), np.int32)
    start, length = np.zeros((2, count), np.int32)
    is_last = np.zeros(count, np.bool_)
    for row, part in enumerate(plan.chunks):
        prompt = requests[part.request_id].prompt
        tokens[row, : part.length] = prompt[part.start : part.start + part.length]
        slots[row], start[row] = part.slot, part.start
        length[row], is_last[row] = part.length, part.is_last
    rows = _stack([row_arrays(requests[c.request_id]) for c in plan.chunks], count)
    arrays: dict[str, Any] = dict(
        slots=slots, tokens=tokens, start=start, length=length, is_last=is_last
    )
    return steps.PrefillChunk(**arrays, rows=rows)


def _stack(rows: list[RowArrays], count: int) -> RowArrays:
    padded = rows + [rows[0]] * (count - len(rows))
    stacked: RowArrays = jax.tree.map(lambda *leaves: np.stack(leaves), *padded)
    return stacked


def row_arrays(request: TokenRequest) -> RowArrays:
    """What the device keeps of a request, as host arrays without a row axis."""
    end_ids = np.full(MAX_ALL_END_IDS, -1, np.int32)
    end_ids[: len(request.end_ids)] = sorted(request.end_ids)
    arrays: dict[str, Any] = dict(
        prompt_length=np.int32(request.held),
        limit=np.int32(request.limit),
        end_ids=end_ids,
    )
    sampling = sampling_row(request.sampling, request.seed)
    return RowArrays(**arrays, sampling=sampling)


def read(dispatch: Dispatch, requests: Mapping[int, TokenRequest]) -> Arrival:
    """Waits for an outcome."""
    outcome = jax.device_get(dispatch.outcome)
    events = [
        _row_event(outcome, row, requests[request_id])
        for row, request_id in dispatch.requests.items()
        if request_id in requests
        and (outcome.counts[row] or outcome.ends[row] != steps.RUNNING)
    ]
    return Arrival(events, int(outcome.steps))


def _row_event(outcome: Any, row: int, request: TokenRequest) -> TokenEvent:
    count = int(outcome.counts[row])
    end: FinishReason | JaxServerError | None = _FINISH.get(int(outcome.ends[row]))
    if outcome.ends[row] == steps.UNSOUND:
        end = EngineFailed("the model's logits are not numbers for this request")
    logprobs = None
    if request.sampling.logprobs is not None:
        logprobs = Logprobs(
            chosen=outcome.logprobs[row, :count],
            top_ids=outcome.top_ids[row, :count, : request.sampling.logprobs],
            top=outcome.top_logprobs[row, :count, : request.sampling.logprobs],
        )
    return TokenEvent(
        request_id=request.request_id,
        token_ids=tuple(outcome.tokens[row, :count].tolist()),
        logprobs=logprobs,
        end=end,
    )
