from typing import Any

import chex
import jax
import numpy as np

from jaxserver.core.decode_state import init_state
from jaxserver.core.sampling_arrays import UNUSED_ID, sampling_row
from jaxserver.ports.types import MAX_LOGIT_BIAS, MAX_SEED, SamplingParams
from tests.tiny import tiny_model


def test_a_seed_is_two_words_the_high_one_first() -> None:
    row = sampling_row(SamplingParams(), (5 << 32) + 7)
    assert row.seed.tolist() == [5, 7]
    assert sampling_row(SamplingParams(), MAX_SEED).seed.tolist() == [2**32 - 1] * 2


def test_what_a_request_leaves_open_is_off() -> None:
    row = sampling_row(SamplingParams(), 0)
    assert row.temperature == 0
    assert row.top_k == 0
    assert row.top_p == 1
    assert not row.logprobs
    assert (row.bias_ids == UNUSED_ID).all()


def test_wishes_are_written_where_they_belong() -> None:
    params = SamplingParams(
        temperature=0.5, top_k=3, top_p=0.25, min_p=0.125, logprobs=0, greedy=True
    )
    row: Any = sampling_row(params, 0, choice=2)
    found = (row.temperature, row.top_k, row.top_p, row.min_p, row.choice)
    assert found == (0.5, 3, 0.25, 0.125, 2)
    assert row.logprobs
    assert row.greedy


def test_a_top_p_of_0_is_not_off() -> None:
    assert sampling_row(SamplingParams(top_p=0.0), 0).top_p == 0


def test_as_many_biases_as_are_allowed_fit() -> None:
    bias = {token: token / 64 for token in range(MAX_LOGIT_BIAS)}
    row = sampling_row(SamplingParams(logit_bias=bias), 0)
    assert dict(zip(row.bias_ids.tolist(), row.bias.tolist(), strict=True)) == bias


def test_rows_are_like_those_of_the_state() -> None:
    rows = jax.eval_shape(lambda: init_state(tiny_model().fns, 3, 3)).rows.sampling
    row = sampling_row(SamplingParams(), 0)
    three = jax.tree.map(lambda leaf: np.stack([leaf] * 3), row)
    chex.assert_trees_all_equal_shapes_and_dtypes(three, rows)
