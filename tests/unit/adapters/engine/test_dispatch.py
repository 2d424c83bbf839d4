import dataclasses
from typing import Any

import jax
import numpy as np
import pytest

from jaxserver.adapters.engine.dispatch import Device, Dispatch, read
from jaxserver.adapters.engine.host_arrays import prefill_chunk, row_arrays
from jaxserver.adapters.engine.orders import NoOrders, Order
from jaxserver.adapters.engine.requests import TokenRequest
from jaxserver.core.config import EngineConfig
from jaxserver.core.schedule import Chunk, DecodePlan, PrefillPlan
from jaxserver.core.steps import Outcome
from jaxserver.ports.types import SamplingParams
from tests import engines
from tests.unit.adapters.engine.answers import LONG


def token_request(request_id: int, prompt: tuple[int, ...]) -> TokenRequest:
    return TokenRequest(
        request_id=request_id,
        prompt=prompt,
        held=len(prompt),
        sampling=SamplingParams(temperature=0.5, top_k=7, top_p=1.0, logprobs=2),
        seed=2**40 + 3,
        limit=90,
        end_ids=frozenset({257, 5}),
        streaming=True,
    )


def chunk_of(request: TokenRequest, slot: int, span: tuple[int, int]) -> Chunk:
    start, end = span
    return Chunk(
        request_id=request.request_id,
        slot=slot,
        start=start,
        tokens=request.prompt[start:end],
        is_last=end == len(request.prompt),
        pages=(slot,),
        seat=None,
    )


def test_a_chunk_is_padded_in_rows_and_in_time() -> None:
    requests = {i: token_request(i, tuple(range(i, i + 40))) for i in (1, 2)}
    plan = PrefillPlan(
        chunks=(
            chunk_of(requests[1], slot=3, span=(32, 40)),
            chunk_of(requests[2], slot=0, span=(0, 32)),
        ),
        time=32,
    )
    chunk = prefill_chunk(plan, requests, engines.NARROW, {})

    nowhere = engines.NARROW.slots
    assert np.asarray(chunk.slots).tolist() == [3, 0, nowhere, nowhere]
    assert np.asarray(chunk.pages).tolist() == [[3], [0], [0], [0]]
    assert np.asarray(chunk.start).tolist() == [32, 0, 0, 0]
    assert np.asarray(chunk.length).tolist() == [8, 32, 0, 0]
    assert np.asarray(chunk.is_last).tolist() == [True, False, False, False]
    assert np.asarray(chunk.tokens)[0, :8].tolist() == list(range(33, 41))
    assert np.asarray(chunk.tokens)[1].tolist() == list(range(2, 34))


@pytest.mark.parametrize(("wants", "is_there"), [((), False), ((1,), True)])
def test_log_probabilities_are_fetched_where_somebody_asked(
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
        tuple(chunk_of(requests[i], slot=i, span=(0, 2)) for i in range(2)), 32
    )
    dispatch = device.prefill(plan, requests, 0.0)
    if not wants:
        unread: Any = Unread()
        outcome = dispatch.outcome._replace(logprobs=unread, top_ids=unread)
        dispatch = dataclasses.replace(dispatch, outcome=outcome)
    events = {event.request_id: event for event in read(dispatch, requests).events}
    assert [len(events[i].token_ids) for i in range(2)] == [1, 1]
    assert (events[1].logprobs is not None) == is_there
    assert events[0].logprobs is None


def test_a_row_carries_what_the_request_wants() -> None:
    row = row_arrays(token_request(0, (1, 2, 3)), {})

    assert int(row.prompt_length) == 3
    assert int(row.limit) == 90
    ends = np.asarray(row.end_ids)
    assert set(ends.tolist()) == {5, 257, -1}
    assert np.asarray(row.sampling.seed).tolist() == [2**8, 3]
    assert float(row.sampling.temperature) == pytest.approx(0.5)


def test_a_slot_that_nobody_wants_does_no_work() -> None:
    done: list[Dispatch] = []

    def prepare(device: engines.HookedDevice) -> None:
        device.after_step = done.append

    with engines.running(engines.Parts(prepare=prepare)) as engine:
        with engine.generate(LONG) as left, engine.generate(LONG) as kept:
            next(left)
            next(kept)
            left.cancel()
            list(kept)
        decodes = [
            dispatch for dispatch in done if isinstance(dispatch.plan, DecodePlan)
        ]

    without = [d for d in decodes if set(d.rows) == {1}]
    assert len(without) > 3
    assert all(int(np.asarray(d.outcome.counts)[0]) == 0 for d in without)


class Recorded(Device):
    """Remembers what it ran, and how many decode steps or prefills that were."""

    def __init__(self, sizes: EngineConfig) -> None:
        self.run: list[tuple[str, int, int]] = []
        executables, params = engines.compiled(sizes), engines.model().params
        super().__init__(executables, params, sizes, NoOrders())

    def _run(self, order: Order) -> Outcome:
        outcome = super()._run(order)
        self.run.append((order.kind, order.size, int(outcome.steps)))
        return outcome


def test_every_step_of_the_model_is_run_once_before_anybody_asks() -> None:
    device = Recorded(engines.WIDE)
    empty = jax.device_get(device._state)

    device.warm_up()

    known = engines.compiled(engines.WIDE).steps
    expected = [("decode", rows, 1) for rows in known.decode]
    expected += [("prefill", time, 1) for time in known.prefill]
    expected += [("score", time, 1) for time in known.score]
    assert sorted(device.run) == sorted(expected)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(device._state), empty)
