import dataclasses
from concurrent.futures import Future
from typing import Any

import jax
import numpy as np
import pytest

from jaxserver.adapters.engine.dispatch import Device, Dispatch, read
from jaxserver.adapters.engine.orders import NoOrders, Order
from jaxserver.core.config import EngineConfig
from jaxserver.core.schedule import PrefillPlan
from jaxserver.core.steps import Outcome
from jaxserver.ports.types import SamplingParams
from tests import engines
from tests.unit.adapters.engine.answers import LONG
from tests.unit.adapters.engine.token_requests import chunk_of, token_request


@pytest.mark.parametrize(("wants", "is_there"), [((), False), ((1,), True)])
def test_what_somebody_asked_for_is_fetched_and_nothing_else(
    wants: tuple[int, ...], is_there: bool
) -> None:
    class Unread:
        def __array__(self, *_: object) -> None:
            raise AssertionError("it is read")

    requests = {
        i: dataclasses.replace(
            token_request(i, (1, 2)),
            sampling=SamplingParams(logprobs=1 if i in wants else None),
        )
        for i in range(2)
    }
    device = Recorded(engines.NARROW)
    plan = PrefillPlan(
        tuple(chunk_of(requests[i], slot=i, span=(0, 2)) for i in range(2)), 24
    )
    unread: Any = Unread()
    outcome = device.run(device.prefill_orders(plan, requests))._replace(scores=unread)
    if not wants:
        outcome = outcome._replace(logprobs=unread, top_ids=unread)
    dispatch = Dispatch(plan=plan, outcome=Future())
    dispatch.outcome.set_result(outcome)
    events = {event.request_id: event for event in read(dispatch, requests).events}
    assert [len(events[i].token_ids) for i in range(2)] == [1, 1]
    assert (events[1].logprobs is not None) == is_there
    assert events[0].logprobs is None


def test_a_slot_that_nobody_wants_does_no_work() -> None:
    decodes: list[tuple[set[int], Outcome]] = []

    def note(order: Order, outcome: Outcome) -> None:
        if order.kind == "decode":
            (block,) = order.inputs
            decodes.append((set(np.flatnonzero(block.keep)), outcome))

    def prepare(device: engines.HookedDevice) -> None:
        device.after_run = note

    with (
        engines.running(engines.Parts(prepare=prepare)) as engine,
        engine.generate(LONG) as left,
        engine.generate(LONG) as kept,
    ):
        next(left)
        next(kept)
        left.cancel()
        list(kept)

    without = [outcome for rows, outcome in decodes if rows == {1}]
    assert len(without) > 3
    assert all(int(np.asarray(outcome.counts)[0]) == 0 for outcome in without)


class Recorded(Device):
    """Remembers what it ran, and how many decode steps or prefills that were."""

    def __init__(self, sizes: EngineConfig) -> None:
        self.has_run: list[tuple[str, int, int]] = []
        executables, params = engines.compiled(sizes), engines.model().params
        super().__init__(executables, params, sizes, NoOrders())

    def _run(self, order: Order) -> Outcome:
        outcome = super()._run(order)
        self.has_run.append((order.kind, order.size, int(outcome.steps)))
        return outcome


def test_every_step_of_the_model_is_run_once_before_anybody_asks() -> None:
    device = Recorded(engines.WIDE)
    empty = jax.device_get(device._state)

    device.warm_up()

    known = engines.compiled(engines.WIDE).steps
    expected = [("decode", rows, 1) for rows in known.decode]
    expected += [("prefill", time, 1) for time in known.prefill]
    assert sorted(device.has_run) == sorted(expected)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(device._state), empty)
