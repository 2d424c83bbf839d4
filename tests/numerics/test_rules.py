"""What a model's settings allow next is what transformers' own processors leave."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from transformers.generation import flax_logits_process as theirs

from jaxserver.core.decode_state import RowArrays
from jaxserver.core.rules import token_mask
from jaxserver.core.sampling_arrays import History, sampling_row
from jaxserver.ports.model import AnswerRules
from jaxserver.ports.types import SamplingParams

VOCAB, MAX_LEN, LIMIT, END = 12, 10, 9, 3
TOKENS = np.array([[5, 6, 7, 5, 6, 4, 5, 6, 0, 0], [1, 2, 1, 2, 1, 0, 0, 0, 0, 0]])
CASES: dict[str, tuple[AnswerRules, Any]] = {
    "first": (AnswerRules(first=4), theirs.FlaxForcedBOSTokenLogitsProcessor(4)),
    "last": (
        AnswerRules(last=2),
        theirs.FlaxForcedEOSTokenLogitsProcessor(LIMIT, 2),
    ),
    "min_len": (AnswerRules(min_len=4), theirs.FlaxMinLengthLogitsProcessor(4, END)),
    "suppressed": (
        AnswerRules(suppressed=(1, 7)),
        theirs.FlaxSuppressTokensLogitsProcessor([1, 7]),
    ),
    "suppressed_first": (
        AnswerRules(suppressed_first=(2, 5)),
        theirs.FlaxSuppressTokensAtBeginLogitsProcessor([2, 5], 2),
    ),
}


def rows_of(prompt_length: int) -> RowArrays:
    arrays: dict[str, Any] = dict(
        prompt_length=jnp.full(2, prompt_length, jnp.int32),
        limit=jnp.full(2, LIMIT, jnp.int32),
        end_ids=jnp.array([[END, -1]] * 2, jnp.int32),
    )
    sampling = sampling_row(SamplingParams(), 0)
    return RowArrays(**arrays, sampling=sampling, processors={})


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("length", [1, 2, 4, 5, 8])
def test_the_mask_is_theirs(name: str, length: int) -> None:
    rules, processor = CASES[name]
    held = jnp.full(2, length, jnp.int32)
    history = History(jnp.asarray(TOKENS, jnp.int32), jnp.full(2, 2, jnp.int32), held)

    mask = token_mask(rules, history, rows_of(2), VOCAB)

    scores = jnp.asarray(np.random.default_rng(0).standard_normal((2, VOCAB)))
    left = processor(jnp.asarray(TOKENS, jnp.int32), scores, length)
    assert mask is not None
    np.testing.assert_array_equal(mask, np.isfinite(np.asarray(left)))


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("length", [1, 2, 4, 5, 8])
def test_no_run_of_tokens_occurs_twice(size: int, length: int) -> None:
    """Against a plain search, since theirs does not run on this JAX."""
    held = jnp.full(2, length, jnp.int32)
    history = History(jnp.asarray(TOKENS, jnp.int32), jnp.full(2, 2, jnp.int32), held)

    mask = token_mask(AnswerRules(no_repeat_ngram=size), history, rows_of(2), VOCAB)

    assert mask is not None
    for row, tokens in enumerate(TOKENS[:, :length].tolist()):
        runs = {tuple(tokens[i : i + size]) for i in range(length - size + 1)}
        last = tokens[length - size + 1 :]
        expected = [(*last, token) not in runs for token in range(VOCAB)]
        assert mask[row].tolist() == expected


def test_a_first_token_that_is_prescribed_does_not_count_as_the_beginning() -> None:
    rules = AnswerRules(first=4, suppressed_first=(5,))
    tokens = jnp.asarray(TOKENS, jnp.int32)
    masks = [
        token_mask(
            rules,
            History(tokens, jnp.ones(2, jnp.int32), jnp.full(2, length, jnp.int32)),
            rows_of(1),
            VOCAB,
        )
        for length in (1, 2, 3)
    ]
    allowed = [np.asarray(mask)[0] for mask in masks]
    assert [int(mask.sum()) for mask in allowed] == [1, VOCAB - 1, VOCAB]


def test_a_model_without_rules_has_no_mask() -> None:
    nothing = jnp.zeros(2, jnp.int32)
    history = History(jnp.asarray(TOKENS, jnp.int32), nothing, nothing)
    assert token_mask(AnswerRules(), history, rows_of(2), VOCAB) is None
