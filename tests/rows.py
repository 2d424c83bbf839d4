"""Runs pieces of rows through a model's functions, each padded to one length."""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxserver.core.ops.linear import Weight, linear, read_rows
from jaxserver.ports.model import Cache, TokenBatch
from tests.tiny import TinyModel

HostArray = np.ndarray[Any, np.dtype[Any]]


@functools.cache
def jitted(function: Callable[..., Any]) -> Any:
    """Compiled once a shape, whoever calls it."""
    return jax.jit(function)


def run(
    model: TinyModel,
    cache: Cache,
    pieces: Sequence[HostArray],
    start: Sequence[int],
    time: int,
    table: HostArray | None = None,
) -> tuple[HostArray, Cache]:
    """Extends every row by its piece; gives logits `[rows, time, vocab]`.

    Those past a piece's end mean nothing.
    """
    tokens = np.full((len(pieces), time), model.fns.vocab_size - 1, np.int32)
    for row, piece in enumerate(pieces):
        tokens[row, : len(piece)] = piece
    arrays: dict[str, Any] = dict(
        tokens=tokens,
        start=np.array(start, np.int32),
        length=np.array([len(piece) for piece in pieces], np.int32),
        page_table=table,
        logits_at=np.tile(np.arange(time, dtype=np.int32), (len(pieces), 1)),
    )
    extend: Any = model.fns.extend
    logits, cache = jitted(extend)(model.params, cache, TokenBatch(**arrays))
    return np.asarray(logits), cache


def run_in_pieces(
    model: TinyModel,
    tokens: HostArray,
    cuts: Sequence[int],
    time: int,
    cache: Cache | None = None,
) -> HostArray:
    """Logits of one row, cut at the given places, alone in a cache or in a new one."""
    cache = model.fns.init_cache(1) if cache is None else cache
    logits = []
    bounds = [0, *cuts, len(tokens)]
    for begin, end in itertools.pairwise(bounds):
        piece = tokens[begin:end]
        part, cache = run(model, cache, [piece], [begin], time)
        logits.append(part[0, : end - begin])
    return np.concatenate(logits)


def assert_rows_keep_their_bits(
    x: HostArray | jax.Array, weight: Weight, table: Weight
) -> None:
    """Among any number of others, beside additions that the compiler may join."""

    def run(x: jax.Array, tokens: jax.Array) -> jax.Array:
        stream = read_rows(table, tokens)
        stream = stream + linear(x * stream, weight)
        return stream + linear(jnp.tanh(stream), weight)

    def first(count: int) -> HostArray:
        tokens = jnp.arange(count, dtype=jnp.int32)
        return np.asarray(jax.jit(run)(x[:count], tokens))

    whole = first(256)
    for count in (4, 5, 8, 13, 32, 128, 200):
        np.testing.assert_array_equal(first(count), whole[:count])
