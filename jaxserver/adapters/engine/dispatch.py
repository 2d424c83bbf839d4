"""Turns a plan into a call of an executable, and its outcome into events."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxserver.adapters.engine.compiling import CompiledSteps
from jaxserver.adapters.engine.host_arrays import (
    adoption,
    decode_block,
    prefill_chunk,
)
from jaxserver.adapters.engine.orders import Order, Orders
from jaxserver.adapters.engine.requests import (
    HostArray,
    KeptPages,
    Logprobs,
    Scores,
    TokenEvent,
    TokenRequest,
)
from jaxserver.core import steps
from jaxserver.core.config import EngineConfig
from jaxserver.core.decode_state import DecodeState
from jaxserver.core.schedule import Chunk, DecodePlan, Plan, PrefillPlan
from jaxserver.ports.errors import EngineFailed, JaxServerError
from jaxserver.ports.model import Params, TokenAxes
from jaxserver.ports.types import FinishReason, SamplingParams

_UNASKED: Any = dict.fromkeys(("logprobs", "top_ids", "top_logprobs"))
_FINISH = {steps.STOP: FinishReason.STOP, steps.LENGTH: FinishReason.LENGTH}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Dispatch:
    """A step that has been handed to the device.

    Attributes:
        plan: What was asked for.
        outcome: Arrays that may not be there yet, or an error in their place.
    """

    plan: Plan
    outcome: Future[steps.Outcome]

    @property
    def rows(self) -> Mapping[int, int]:
        """Which request is in which row of the outcome."""
        if isinstance(self.plan, DecodePlan):
            return self.plan.requests
        return dict(enumerate(self.plan.request_ids))


class Arrival(NamedTuple):
    """An outcome that has come.

    Attributes:
        events: What it brought the requests that are still wanted.
        unsound: Requests whose logits were no numbers.
        steps: How many steps were run.
        drafted: How many guessed tokens those have run.
        accepted: How many of them were right.
    """

    events: Sequence[TokenEvent] = ()
    unsound: frozenset[int] = frozenset()
    steps: int = 0
    drafted: int = 0
    accepted: int = 0


NOTHING = Arrival()


class Device:
    """The weights, the state of the slots, and the executables that change it.

    Attributes:
        params: The weights; others of the same shapes may take their place.
    """

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
        self.params = params
        self._engine = engine
        self._processors = compiled.steps.processors
        self._state: DecodeState = compiled.get("init", 0)()

    @property
    def can_take(self) -> bool:
        """Pages can be taken out, and put in: one process has all of each."""
        is_alone = jax.process_count() == 1
        return is_alone and self._compiled.steps.token_axes is not None

    @property
    def _token_axes(self) -> TokenAxes:
        return self._compiled.steps.token_axes or ()

    def reset(self) -> None:
        """Makes an empty state in place of one that a failed dispatch consumed."""
        self._give(Order("init", 0))

    def warm_up(self, check: Callable[[], object] = lambda: None) -> None:
        """Runs every step of the model once, and forgets what came of it.

        Its products are set up when an executable is first run, which takes about as
        long as ten runs (CPU). The first collective of a kind joins the devices of all
        processes, and would wait long for one that is lost.

        Args:
            check: Called before each is asked for; what it raises is the end.
        """
        engine, known = self._engine, self._compiled.steps
        someone, pages = {0: _someone(engine)}, tuple(range(engine.pages_per_row))
        chunk = Chunk(0, 0, 0, (0,), True, pages, None)
        scored = chunk._replace(targets=(0,))
        plans = [
            PrefillPlan((scored if time == engine.score_length else chunk,), time)
            for time in known.prefill
        ]
        orders = [self._prefill_order(plan, someone) for plan in plans]
        for rows in known.decode:
            orders.append(self._decode_order(DecodePlan({0: 0}, rows, 1, {0: pages})))
        for order in orders:
            check()
            self._order(order)
        jax.block_until_ready(self._state)
        self._give(Order("init", 0))

    def follow(self, order: Order) -> None:
        """Runs what another process has ordered; its outcome is that one's to read."""
        if order.kind == "init":
            del self._state  # there is no memory for two
            self._state = self._compiled.get("init", 0)()
        elif order.kind == "adopt":
            self._state = self._compiled.get("adopt", 0)(self._state, *order.inputs)
        else:
            self._run(order)

    def _give(self, order: Order) -> None:
        self.orders.give(order)
        self.follow(order)

    def _order(self, order: Order) -> steps.Outcome:
        self.orders.give(order)
        return self._run(order)

    def _run(self, order: Order) -> steps.Outcome:
        run = self._compiled.get(order.kind, order.size)
        outcome: steps.Outcome
        if order.kind == "decode":
            self._state, outcome = run(self.params, self._state, *order.inputs)
            return outcome
        (chunk,), begin = order.inputs, self._compiled.get("begin", 0)
        state, (*found, scores) = run(self.params, self._state, chunk)
        self._state, outcome = begin(state, chunk.beginning, steps.Prefilled(*found))
        return outcome._replace(scores=scores)

    def take(self, pages: Sequence[int], length: int) -> KeptPages:
        """What pages hold of a row's first tokens, on the host."""
        run, axes = self._compiled.get("take", 0), self._token_axes
        leaves = []
        for nth, page in enumerate(pages):
            some = min(length - nth * self._engine.page_size, self._engine.page_size)
            held = jax.device_get(run(self._state, np.int32(page)))
            each = zip(jax.tree.leaves(held), axes, strict=True)
            cut = (_tokens_last(x, at)[..., :some] for x, at in each)
            leaves.append(tuple(map(np.ascontiguousarray, cut)))  # as files need them
        return KeptPages(length, tuple(leaves))

    def fits(self, kept: KeptPages) -> bool:
        """Whether it may have been taken from a cache of this model."""
        if not self.can_take:
            return True  # nobody will put it anywhere
        _, shapes = self._compiled.steps.inputs("put", 0)
        axes, wanted = self._token_axes, jax.tree.leaves(shapes)
        size = self._engine.page_size
        for nth, leaves in enumerate(kept.leaves):
            some = min(kept.length - nth * size, size)
            fit = [
                x.dtype == y.dtype and x.shape == (*np.delete(y.shape, at), some)
                for x, y, at in zip(leaves, wanted, axes, strict=False)
            ]
            if len(leaves) != len(wanted) or not all(fit):
                return False
        return True

    def put(self, pages: Sequence[int], kept: KeptPages) -> None:
        """Lets pages hold what was taken from others of the same model."""
        (_, shapes) = self._compiled.steps.inputs("put", 0)
        wanted, tree = jax.tree.flatten(shapes)
        axes, run = self._token_axes, self._compiled.get("put", 0)
        for page, leaves in zip(pages, kept.leaves, strict=True):
            each = zip(leaves, wanted, axes, strict=True)
            held = jax.tree.unflatten(
                tree, [_page(x, y.shape, at) for x, y, at in each]
            )
            self._state = run(self._state, np.int32(page), held)

    def prefill_orders(
        self, plan: PrefillPlan, requests: Mapping[int, TokenRequest]
    ) -> tuple[Order, ...]:
        """What to run for a prefill; its outcome's rows are the plan's chunks."""
        orders = []
        for chunk in plan.chunks:
            if chunk.seat is not None and chunk.seat.held:
                found = adoption(chunk, chunk.seat, self._engine)
                orders.append(Order("adopt", 0, (found,)))
        return (*orders, self._prefill_order(plan, requests))

    def decode_orders(self, plan: DecodePlan) -> tuple[Order, ...]:
        """What to run for a decode block; its outcome's rows are slots."""
        return (self._decode_order(plan),)

    def _prefill_order(
        self, plan: PrefillPlan, requests: Mapping[int, TokenRequest]
    ) -> Order:
        inputs = prefill_chunk(plan, requests, self._engine, self._processors)
        return Order("prefill", plan.time, (inputs,))

    def _decode_order(self, plan: DecodePlan) -> Order:
        return Order("decode", plan.rows, (decode_block(plan, self._engine),))

    def run(self, orders: Sequence[Order]) -> steps.Outcome:
        """Starts what was ordered; the outcome is the last one's."""
        *first, last = orders
        for order in first:
            self._give(order)
        return self._order(last)


def _someone(engine: EngineConfig) -> TokenRequest:
    """A request that never ends by itself."""
    return TokenRequest(
        request_id=0,
        prompt=(0,),
        held=1,
        sampling=SamplingParams(greedy=True),
        seed=0,
        limit=engine.max_len,
        end_ids=frozenset(),
        streaming=False,
    )


def _tokens_last(page: HostArray, axes: tuple[int, ...]) -> HostArray:
    """A page with its tokens as the last dimension."""
    moved = np.moveaxis(page, axes, range(-len(axes), 0))
    return moved.reshape(*moved.shape[: -len(axes)], -1)


def _page(some: HostArray, shape: tuple[int, ...], axes: tuple[int, ...]) -> HostArray:
    """What `_tokens_last` was made of, as far as there is something of it."""
    sizes = [shape[axis] for axis in axes]
    missing = math.prod(sizes) - some.shape[-1]
    whole = np.pad(some, [*[(0, 0)] * (some.ndim - 1), (0, missing)])
    apart = whole.reshape(*whole.shape[:-1], *sizes)
    return np.moveaxis(apart, range(-len(axes), 0), axes)


def read(dispatch: Dispatch, requests: Mapping[int, TokenRequest]) -> Arrival:
    """Waits for an outcome, and raises what its step did."""
    outcome: Any = dispatch.outcome.result()
    known = map(requests.get, dispatch.rows.values())
    if all(one is None or one.sampling.logprobs is None for one in known):
        outcome = outcome._replace(**_UNASKED)
    if not (isinstance(dispatch.plan, PrefillPlan) and dispatch.plan.is_scored):
        outcome = outcome._replace(scores=None)
    outcome = jax.device_get(outcome)
    scores = _scores(outcome, dispatch.plan, requests)
    events = [
        _row_event(outcome, row, requests[request_id], scores.get(row))
        for row, request_id in dispatch.rows.items()
        if request_id in requests
        and (outcome.counts[row] or outcome.ends[row] != steps.RUNNING or row in scores)
    ]
    rows = dispatch.rows.items()
    unsound = frozenset(i for row, i in rows if not outcome.sound[row])
    drafts = (int(outcome.drafted.sum()), int(outcome.accepted.sum()))
    return Arrival(events, unsound, int(outcome.steps), *drafts)


def _scores(
    outcome: Any, plan: Plan, requests: Mapping[int, TokenRequest]
) -> dict[int, Scores]:
    """By row, what a prompt's own tokens got."""
    if not isinstance(plan, PrefillPlan):
        return {}
    found = {}
    for row, part in enumerate(plan.chunks):
        if part.targets is None or part.request_id not in requests:
            continue
        some, top = len(part.targets), requests[part.request_id].sampling.logprobs
        logprobs = Logprobs(
            chosen=outcome.scores.logprobs[row, :some],
            top_ids=outcome.scores.top_ids[row, :some, :top],
            top=outcome.scores.top_logprobs[row, :some, :top],
        )
        found[row] = Scores(part.start + 1, part.targets, logprobs)
    return found


def _row_event(
    outcome: Any, row: int, request: TokenRequest, scores: Scores | None
) -> TokenEvent:
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
        scores=scores,
    )
