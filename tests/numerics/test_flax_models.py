"""Every Flax class through our functions gives the logits that it gives by itself."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxserver.adapters.flax_models.models import FlaxModel, flax_model
from jaxserver.ports.model import TokenBatch
from tests.tiny_flax import CAUSAL, SEQ_TO_SEQ, TinyFlax, causal, seq_to_seq

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*is deprecated", "ignore:.*one_hot", "ignore:.*Explicitly requested"
)
MAX_LEN, ROWS = 60, 3
FEW_CAUSAL = ["gpt2", "bloom", "mistral", "roberta"]
FEW_SEQ_TO_SEQ = ["mbart", "encoder-decoder"]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A few classes that differ in kind, or with `--every-class` every class."""
    is_every = metafunc.config.getoption("--every-class")
    kinds = {
        "causal_kind": list(CAUSAL) if is_every else FEW_CAUSAL,
        "seq_to_seq_kind": [*SEQ_TO_SEQ, "encoder-decoder"]
        if is_every
        else FEW_SEQ_TO_SEQ,
    }
    for name in kinds.keys() & set(metafunc.fixturenames):
        metafunc.parametrize(name, kinds[name])


def assert_close(found: Any, expected: Any) -> None:
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-4)


def tokens_of(seed: int, length: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(3, 64, length).astype(np.int32)


def alone(tiny: TinyFlax) -> Callable[[np.ndarray], np.ndarray]:
    """The class itself, without a cache; it is compiled for one length alone."""
    model = tiny.model
    if model.config.model_type == "mistral":  # it sees one key more than its window
        window = model.config.sliding_window - 1
        model = causal("mistral", sliding_window=window).model
    run = jax.jit(functools.partial(model.__call__, return_dict=True))
    has_types = "token_type_ids" in inspect.signature(model.__call__).parameters

    def logits_of(tokens: np.ndarray) -> np.ndarray:
        padded = np.zeros((1, MAX_LEN), np.int32)
        padded[0, : len(tokens)] = tokens
        types = {"token_type_ids": np.zeros_like(padded)} if has_types else {}
        output = run(padded, params=tiny.params, **types)
        return np.asarray(output.logits[0, : len(tokens)])

    return logits_of


def test_rows_of_different_lengths_have_the_logits_of_each_alone(
    causal_kind: str,
) -> None:
    tiny = causal(causal_kind)
    served, by_itself = flax_model(tiny.model, MAX_LEN), alone(tiny)
    extend = jax.jit(served.fns.extend)
    rows = [tokens_of(1, 9), tokens_of(2, 30), tokens_of(3, 17)]
    cache = served.fns.init_cache(ROWS)

    logits, cache = extend(tiny.params, cache, batch_of(served, [0] * ROWS, rows))
    for row, tokens in enumerate(rows):
        expected = by_itself(tokens)
        assert_close(logits[row, : len(tokens)], expected)

    more = [tokens_of(4, 1), tokens_of(5, 0), tokens_of(6, 1)]
    starts = [len(tokens) for tokens in rows]
    logits, cache = extend(tiny.params, cache, batch_of(served, starts, more, time=1))
    for row in (0, 2):
        whole = np.concatenate([rows[row], more[row]])
        assert_close(logits[row, 0], by_itself(whole)[-1])
    again = [tokens_of(7, 0), tokens_of(8, 1), tokens_of(9, 0)]
    logits, _ = extend(tiny.params, cache, batch_of(served, starts, again, time=1))
    whole = np.concatenate([rows[1], again[1]])
    assert_close(logits[1, 0], by_itself(whole)[-1])


def batch_of(
    served: FlaxModel,
    starts: list[int],
    rows: list[np.ndarray],
    time: int | None = None,
) -> TokenBatch:
    """Rows right-padded to the length of a chunk, with logits of every token."""
    time = time or served.fns.chunk or 0
    padded = np.zeros((len(rows), time), np.int32)
    for row, tokens in zip(padded, rows, strict=True):
        row[: len(tokens)] = tokens
    return TokenBatch(
        tokens=jnp.asarray(padded),
        start=jnp.array(starts, jnp.int32),
        length=jnp.array([len(tokens) for tokens in rows], jnp.int32),
        page_table=None,
        logits_at=jnp.broadcast_to(jnp.arange(time, dtype=jnp.int32), padded.shape),
    )


def test_a_decoder_reads_what_its_rows_encoder_made(seq_to_seq_kind: str) -> None:
    tiny = seq_to_seq(seq_to_seq_kind)
    served = flax_model(tiny.model, MAX_LEN)
    assert served.fns.encode is not None
    extend, encode = jax.jit(served.fns.extend), jax.jit(served.fns.encode)
    inputs = [tokens_of(1, 9), tokens_of(2, 30), tokens_of(3, 17)]
    padded = np.zeros((ROWS, served.fns.encoder_lengths[0]), np.int32)
    for place, tokens in zip(padded, inputs, strict=True):
        place[: len(tokens)] = tokens
    lengths = jnp.array([len(tokens) for tokens in inputs], jnp.int32)
    cache = served.fns.init_cache(ROWS)
    cache = encode(tiny.params, cache, jnp.arange(ROWS), jnp.asarray(padded), lengths)

    heard = [tokens_of(4, 5), tokens_of(5, 12), tokens_of(6, 1)]
    logits, _ = extend(tiny.params, cache, batch_of(served, [0] * ROWS, heard))
    for row, tokens in enumerate(heard):
        output = jax.jit(tiny.model.__call__)(
            inputs[row][None], decoder_input_ids=tokens[None], params=tiny.params
        )
        found = logits[row, : len(tokens)]
        assert_close(found, output.logits[0])
