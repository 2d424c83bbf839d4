import numpy as np
import pytest

from jaxserver.adapters.engine.host_arrays import prefill_chunk, row_arrays
from jaxserver.core.schedule import PrefillPlan
from tests import engines
from tests.unit.adapters.engine.token_requests import chunk_of, token_request


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


def test_a_longest_chunk_says_which_tokens_are_scored() -> None:
    longest, requests = engines.NARROW.score_length, {0: token_request(0, (1, 2, 3))}
    assert longest is not None
    part = chunk_of(requests[0], slot=0, span=(0, 2))
    for told, first in ((None, -1), ((2, 3), 2)):
        plan = PrefillPlan((part._replace(targets=told),), longest)
        chunk = prefill_chunk(plan, requests, engines.NARROW, {})
        targets = np.asarray(chunk.targets)
        assert targets.shape == (engines.NARROW.prefill_rows, longest)
        assert targets[0, 0] == first
        assert (targets[0, 2:] == -1).all()
        assert (targets[1:] == -1).all()
    shorter = prefill_chunk(PrefillPlan((part,), 32), requests, engines.NARROW, {})
    assert shorter.targets is None


def test_a_row_carries_what_the_request_wants() -> None:
    row = row_arrays(token_request(0, (1, 2, 3)), {})

    assert int(row.prompt_length) == 3
    assert int(row.limit) == 90
    ends = np.asarray(row.end_ids)
    assert set(ends.tolist()) == {5, 257, -1}
    assert np.asarray(row.sampling.seed).tolist() == [2**8, 3]
    assert float(row.sampling.temperature) == pytest.approx(0.5)
