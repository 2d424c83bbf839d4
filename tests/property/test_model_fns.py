"""What every `ModelFns` keeps, whatever model is behind it: bitwise, on the CPU.

A family joins by adding its builder to `BUILDERS`: from the size of a page, or None for
whole rows, to a model of at most `MAX_LEN` tokens.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import chex
import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.rows import HostArray, jitted, run, run_in_pieces
from tests.tiny import TinyModel, tiny_model

MAX_LEN = 256
LENGTH = 140
TIME = 32
"""Every chunk is padded to this, so that there are few shapes to compile."""

Builder = Callable[[int | None], TinyModel]


@functools.cache
def tiny_llama(page_size: int | None = None) -> TinyModel:
    return tiny_model(max_len=MAX_LEN, page_size=page_size)


BUILDERS: list[Builder] = [tiny_llama]
every_model = pytest.mark.parametrize("build", BUILDERS)
pytestmark = [pytest.mark.usefixtures("strict_jax"), every_model]

SEEDS = st.integers(0, 2**32 - 1)
PAGE_SIZES = [16, 32, 128]


@st.composite
def cuts(draw: st.DrawFn) -> list[int]:
    """Places to cut a row of `LENGTH` tokens into pieces of at most `TIME`."""
    places: list[int] = []
    at = 0
    while LENGTH - at > TIME:
        at += draw(st.integers(1, TIME))
        places.append(at)
    return places


def tokens_of(build: Builder, seed: int, length: int = LENGTH) -> HostArray:
    vocab = build(None).fns.vocab_size
    return np.random.default_rng(seed).integers(0, vocab, length, np.int32)


def whole(build: Builder, tokens: HostArray) -> HostArray:
    """Its logits in one piece, alone, in a cache that was never used."""
    return run_in_pieces(build(None), tokens, [], len(tokens))


@given(seed=SEEDS, cuts=cuts())
def test_prefill_in_chunks_equals_prefill_at_once(
    build: Builder, seed: int, cuts: Sequence[int]
) -> None:
    tokens = tokens_of(build, seed)
    in_chunks = run_in_pieces(build(None), tokens, cuts, TIME)
    np.testing.assert_array_equal(in_chunks, whole(build, tokens))


@given(seed=SEEDS, prompt=st.integers(1, LENGTH - 1), rows=st.sampled_from([1, 4]))
def test_decode_steps_equal_prefill(
    build: Builder, seed: int, prompt: int, rows: int
) -> None:
    model, tokens = build(None), tokens_of(build, seed)
    expected = whole(build, tokens)
    row = seed % rows
    nothing = [tokens[:0]] * rows
    cache = model.fns.init_cache(rows)
    alone = [*nothing[:row], tokens[:prompt], *nothing[row + 1 :]]
    _, cache = run(model, cache, alone, [0] * rows, LENGTH)
    for at in range(prompt, min(prompt + 6, LENGTH)):
        one = [*nothing[:row], tokens[at : at + 1], *nothing[row + 1 :]]
        logits, cache = run(model, cache, one, [at] * rows, 1)
        np.testing.assert_array_equal(logits[row, 0], expected[at])


@given(seeds=st.lists(SEEDS, min_size=4, max_size=4), data=st.data())
def test_neighbours_do_not_matter(
    build: Builder, seeds: list[int], data: st.DataObject
) -> None:
    model, lengths = build(None), st.lists(st.integers(0, TIME), min_size=4, max_size=4)
    firsts, seconds = data.draw(lengths), data.draw(lengths)
    rows = [tokens_of(build, seed) for seed in seeds]
    cache = model.fns.init_cache(4)
    pieces = [row[:first] for row, first in zip(rows, firsts, strict=True)]
    begun, cache = run(model, cache, pieces, [0] * 4, TIME)
    ends = [first + second for first, second in zip(firsts, seconds, strict=True)]
    pieces = [row[a:b] for row, a, b in zip(rows, firsts, ends, strict=True)]
    gone_on, _ = run(model, cache, pieces, firsts, TIME)
    for row, first, second, a, b in zip(
        rows, firsts, seconds, begun, gone_on, strict=True
    ):
        together = np.concatenate([a[:first], b[:second]])
        expected = whole(build, row)[: first + second]
        np.testing.assert_array_equal(together, expected)


@given(seed=SEEDS, filling=st.sampled_from(["other", "huge", "nan", "inf"]))
def test_what_a_page_held_before_does_not_matter(
    build: Builder, seed: int, filling: str
) -> None:
    model, tokens, other = (
        build(None),
        tokens_of(build, seed),
        tokens_of(build, seed + 1),
    )
    before = model
    if filling in ("nan", "inf"):
        before = broken_params(model, float(filling))
    logits, cache = run(before, model.fns.init_cache(1), [other], [0], LENGTH)
    assert np.isfinite(logits).all() == (before is model)
    if filling == "huge":
        cache = jax.tree.map(lambda leaf: leaf.at[:].set(1e30), cache)
    found = run_in_pieces(model, tokens, range(TIME, LENGTH, TIME), TIME, cache)
    np.testing.assert_array_equal(found, whole(build, tokens))


def broken_params(model: TinyModel, value: float) -> TinyModel:
    """The same model with a number in each weight that is none."""
    params = jax.tree.map(lambda leaf: leaf.at[..., 0].set(value), model.params)
    return model._replace(params=params)


@given(seed=SEEDS, start=st.integers(1, LENGTH - TIME), drafted=st.integers(1, TIME))
def test_rolling_back_a_draft_equals_never_having_drafted(
    build: Builder, seed: int, start: int, drafted: int
) -> None:
    model, tokens = build(None), tokens_of(build, seed)
    _, cache = run(model, model.fns.init_cache(1), [tokens[:start]], [0], LENGTH)
    draft = tokens_of(build, seed + 1, drafted)
    _, cache = run(model, cache, [draft], [start], TIME)
    logits, _ = run(model, cache, [tokens[start : start + TIME]], [start], TIME)
    expected = whole(build, tokens)[start : start + TIME]
    np.testing.assert_array_equal(logits[0], expected)


@pytest.mark.parametrize("page_size", PAGE_SIZES)
@given(seed=SEEDS)
def test_small_pages_in_any_order_equal_whole_rows(
    build: Builder, page_size: int, seed: int
) -> None:
    model, per_row = build(page_size), MAX_LEN // page_size
    rows = [tokens_of(build, seed + row) for row in range(2)]
    rng = np.random.default_rng(seed)
    table = rng.permutation(2 * per_row + 1)[: 2 * per_row].astype(np.int32)
    table = table.reshape(2, per_row)
    cache, logits = model.fns.init_cache(2 * per_row + 1), []
    for at in range(0, LENGTH, TIME):
        pieces = [row[at : at + TIME] for row in rows]
        part, cache = run(model, cache, pieces, [at, at], TIME, table)
        logits.append(part)
    together = np.concatenate(logits, axis=1)[:, :LENGTH]
    for row, found in zip(rows, together, strict=True):
        np.testing.assert_array_equal(found, whole(build, row))


def test_tokens_past_the_end_of_a_row_are_dropped(build: Builder) -> None:
    model = build(16)
    tokens, table = tokens_of(build, 0, TIME), np.array([[1, 0]], np.int32)
    kept, cache = run(model, model.fns.init_cache(3), [tokens], [0], TIME, table)
    full: Any = jax.tree.map(np.asarray, cache)
    _, cache = run(model, cache, [tokens], [TIME], TIME, table)
    chex.assert_trees_all_equal(full, jax.tree.map(np.asarray, cache))
    np.testing.assert_array_equal(kept[0], whole(build, tokens))


@pytest.mark.parametrize("page_size", [None, 16])
@given(seed=SEEDS, data=st.data())
def test_copying_pages_copies_exactly_what_was_asked(
    build: Builder, page_size: int | None, seed: int, data: st.DataObject
) -> None:
    model = build(page_size)
    pages, size = st.integers(0, 3), model.fns.page_size
    length = data.draw(st.lists(st.integers(0, size), min_size=2, max_size=2))
    source = data.draw(st.lists(pages, min_size=2, max_size=2))
    unused = st.sampled_from([p for p in range(5) if p not in source])
    target = data.draw(st.lists(unused, min_size=2, max_size=2, unique=True))
    cache = random_cache(model, seed)
    copies = (np.array(x, np.int32) for x in (source, target, length))
    copy_pages: Any = model.fns.copy_pages
    found = jitted(copy_pages)(cache, *copies)
    expected = jax.tree.map(lambda leaf: np.asarray(leaf).copy(), cache)
    for leaf in jax.tree.leaves(expected):
        token_axis = leaf.shape[1:].index(size)
        for a, b, count in zip(source, target, length, strict=True):
            if b < 4:
                old, new = (np.moveaxis(leaf[p], token_axis, 0) for p in (b, a))
                old[:count] = new[:count]
    chex.assert_trees_all_equal(jax.tree.map(np.asarray, found), expected)


def random_cache(model: TinyModel, seed: int) -> Any:
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jax.numpy.asarray(rng.standard_normal(leaf.shape, np.float32)),
        model.fns.init_cache(4),
    )
