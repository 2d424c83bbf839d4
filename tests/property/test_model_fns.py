"""What every `ModelFns` keeps, whatever model is behind it.

A family joins by adding a `Form` to `FORMS`: a model of at least `MAX_LEN` tokens, and
what it can do. Where a token's bits do not depend on the shape of its call everything
is bitwise; else it is on the grid of chunks, and within 1e-5 off it.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxserver.adapters.flax_models.models import flax_model
from jaxserver.ports.model import Cache
from tests.rows import HostArray, jitted, run, run_in_pieces
from tests.tiny import TINY_LLAMA, TinyModel, tiny_model
from tests.tiny_flax import TinyFlax, causal, longer, seq_to_seq

MAX_LEN = 256
POSITIONS = 224
"""Rows of Flax models; no multiple of 64, so that their chunks have 32 tokens."""
LENGTH = 140
TIME = 32
"""Every chunk is padded to this, so that there are few shapes to compile."""


class Form(NamedTuple):
    """A model, and what it promises.

    Attributes:
        build: Makes it, with pages of some size or None for whole rows.
        is_exact: No bit depends on the shape of a call.
        has_pages: Its rows can be cut into pages.
        keeps_numbers: What it keeps of a row are numbers that can be broken.
    """

    build: Callable[[int | None], TinyModel]
    is_exact: bool = False
    has_pages: bool = False
    keeps_numbers: bool = True


@functools.cache
def tiny_llama(page_size: int | None = None) -> TinyModel:
    return tiny_model(max_len=MAX_LEN, page_size=page_size)


@functools.cache
def tiny_int8(page_size: int | None = None) -> TinyModel:
    one_layer = dataclasses.replace(TINY_LLAMA, num_layers=1)
    return tiny_model(one_layer, max_len=MAX_LEN, kept="int8")


def over_flax(tiny: TinyFlax) -> TinyModel:
    fns = flax_model(tiny.model, POSITIONS).fns
    assert fns.chunk == TIME
    return TinyModel(fns, tiny.params, tiny_llama().mesh)


@functools.cache
def flax_cached(page_size: int | None = None) -> TinyModel:
    return over_flax(causal("gpt2", **longer("gpt2", POSITIONS)))


@functools.cache
def flax_rerun(page_size: int | None = None) -> TinyModel:
    return over_flax(causal("bert", num_hidden_layers=1, **longer("bert", POSITIONS)))


@functools.cache
def flax_encoded(page_size: int | None = None) -> TinyModel:
    layers = {"encoder_layers": 1, "decoder_layers": 1}
    return over_flax(seq_to_seq("mbart", **layers, **longer("mbart", POSITIONS)))


NATIVE = Form(tiny_llama, is_exact=True, has_pages=True)
FORMS = {
    "native": NATIVE,
    "flax_cached": Form(flax_cached),
    "flax_rerun": Form(flax_rerun, keeps_numbers=False),
    "flax_encoded": Form(flax_encoded),
}
WITH_INT8 = {**FORMS, "native_int8": Form(tiny_int8, is_exact=True)}
"""Every way to an answer in int8 is in `test_executables`."""
every_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
int8_too = pytest.mark.parametrize("form", WITH_INT8.values(), ids=WITH_INT8.keys())
with_pages = pytest.mark.parametrize("form", [NATIVE], ids=["native"])
pytestmark = [
    pytest.mark.usefixtures("numerics"),
    pytest.mark.filterwarnings("ignore:.*is deprecated"),
]

SEEDS = st.integers(0, 2**32 - 1)
PAGE_SIZES = [16, 32, 128]


@pytest.fixture
def numerics(form: Form, request: pytest.FixtureRequest) -> None:
    """Strict, but for the classes of transformers, which promote types."""
    if form.is_exact:
        request.getfixturevalue("strict_jax")


@st.composite
def cuts(draw: st.DrawFn) -> list[int]:
    """Places to cut a row of `LENGTH` tokens into pieces of at most `TIME`."""
    places: list[int] = []
    at = 0
    while LENGTH - at > TIME:
        at += draw(st.integers(1, TIME))
        places.append(at)
    return places


def tokens_of(form: Form, seed: int, length: int = LENGTH) -> HostArray:
    vocab = form.build(None).fns.vocab_size
    return np.random.default_rng(seed).integers(0, vocab, length, np.int32)


def new_cache(model: TinyModel, rows: int) -> Cache:
    return admitted(model, model.fns.init_cache(rows), rows)


def admitted(model: TinyModel, cache: Cache, rows: int) -> Cache:
    """Its rows are given to new requests, which have an encoder's input if need be."""
    encode: Any = model.fns.encode
    if encode is None:
        return cache
    width = model.fns.encoder_lengths[0]
    heard = np.random.default_rng(5).integers(3, model.fns.vocab_size, width, np.int32)
    length = np.full(rows, 20, np.int32)
    inputs = (np.arange(rows, dtype=np.int32), np.tile(heard, (rows, 1)), length)
    return jitted(encode)(model.params, cache, *inputs)


def prefill(
    model: TinyModel, cache: Cache, rows: Sequence[HostArray]
) -> tuple[HostArray, Cache]:
    """Runs rows in chunks on the grid; gives logits `[rows, time, vocab]`."""
    logits = []
    longest = max(len(row) for row in rows)
    for at in range(0, longest, TIME):
        pieces = [row[at : at + TIME] for row in rows]
        part, cache = run(model, cache, pieces, [at] * len(rows), TIME)
        logits.append(part)
    return np.concatenate(logits, axis=1), cache


def whole(form: Form, tokens: HostArray) -> HostArray:
    """Its logits alone in a new cache: in one piece, or in chunks on the grid."""
    model = form.build(None)
    if form.is_exact:
        return run_in_pieces(model, tokens, [], len(tokens))
    logits, _ = prefill(model, new_cache(model, 1), [tokens])
    return logits[0, : len(tokens)]


def assert_same(form: Form, found: HostArray, expected: HostArray) -> None:
    if form.is_exact:
        np.testing.assert_array_equal(found, expected)
    else:
        np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-5)


@every_form
@given(seed=SEEDS, cuts=cuts())
def test_prefill_in_chunks_equals_prefill_at_once(
    form: Form, seed: int, cuts: Sequence[int]
) -> None:
    model, tokens = form.build(None), tokens_of(form, seed)
    in_chunks = run_in_pieces(model, tokens, cuts, TIME, new_cache(model, 1))
    assert_same(form, in_chunks, whole(form, tokens))
    at_once = run_in_pieces(model, tokens, [], LENGTH, new_cache(model, 1))
    assert_same(form, in_chunks, at_once)


@every_form
@given(seed=SEEDS, prompt=st.integers(1, LENGTH - 1), rows=st.sampled_from([1, 4]))
def test_decode_steps_equal_prefill(
    form: Form, seed: int, prompt: int, rows: int
) -> None:
    model, tokens = form.build(None), tokens_of(form, seed)
    expected = whole(form, tokens)
    row = seed % rows
    nothing = [tokens[:0]] * rows
    alone = [*nothing[:row], tokens[:prompt], *nothing[row + 1 :]]
    _, cache = prefill(model, new_cache(model, rows), alone)
    for at in range(prompt, min(prompt + 6, LENGTH)):
        one = [*nothing[:row], tokens[at : at + 1], *nothing[row + 1 :]]
        logits, cache = run(model, cache, one, [at] * rows, 1)
        assert_same(form, logits[row, 0], expected[at])


@every_form
@given(seeds=st.lists(SEEDS, min_size=4, max_size=4), data=st.data())
def test_neighbours_do_not_matter(
    form: Form, seeds: list[int], data: st.DataObject
) -> None:
    model = form.build(None)
    lengths = st.lists(st.integers(0, TIME), min_size=4, max_size=4)
    firsts, seconds = data.draw(lengths), data.draw(lengths)
    rows = [tokens_of(form, seed) for seed in seeds]
    pieces = [row[:first] for row, first in zip(rows, firsts, strict=True)]
    begun, cache = run(model, new_cache(model, 4), pieces, [0] * 4, TIME)
    ends = [first + second for first, second in zip(firsts, seconds, strict=True)]
    pieces = [row[a:b] for row, a, b in zip(rows, firsts, ends, strict=True)]
    gone_on, _ = run(model, cache, pieces, firsts, TIME)
    for row, first, second, a, b in zip(
        rows, firsts, seconds, begun, gone_on, strict=True
    ):
        together = np.concatenate([a[:first], b[:second]])
        assert_same(form, together, whole(form, row)[: first + second])


@int8_too
@given(seed=SEEDS, filling=st.sampled_from(["other", "huge", "nan", "inf"]))
def test_what_a_page_held_before_does_not_matter(
    form: Form, seed: int, filling: str
) -> None:
    model, tokens = form.build(None), tokens_of(form, seed)
    other = tokens_of(form, seed + 1)
    before = model
    if filling in ("nan", "inf"):
        before = broken_params(model, float(filling))
    logits, cache = prefill(before, new_cache(model, 1), [other])
    assert np.isfinite(logits).all() == (before is model)
    if filling == "huge" and form.keeps_numbers:
        cache = jax.tree.map(huge, cache)
    cache = admitted(model, cache, 1)
    found, _ = prefill(model, cache, [tokens])
    expected = whole(form, tokens)
    np.testing.assert_array_equal(found[0, :LENGTH], expected)


HUGE = {"float32": 1e30, "float16": 6e4}


def huge(leaf: jax.Array) -> jax.Array:
    return leaf.at[:].set(HUGE[str(leaf.dtype)]) if str(leaf.dtype) in HUGE else leaf


def broken_params(model: TinyModel, value: float) -> TinyModel:
    """The same model with a number in each weight that is none, or in its scale."""
    params = jax.tree.map(
        lambda leaf: leaf.at[..., 0].set(value) if leaf.dtype == jnp.float32 else leaf,
        model.params,
    )
    return model._replace(params=params)


@every_form
@given(seed=SEEDS, start=st.integers(1, LENGTH - TIME), drafted=st.integers(1, TIME))
def test_rolling_back_a_draft_equals_never_having_drafted(
    form: Form, seed: int, start: int, drafted: int
) -> None:
    model, tokens = form.build(None), tokens_of(form, seed)
    _, cache = prefill(model, new_cache(model, 1), [tokens[:start]])
    draft = tokens_of(form, seed + 1, drafted)
    _, cache = run(model, cache, [draft], [start], TIME)
    logits, _ = run(model, cache, [tokens[start : start + TIME]], [start], TIME)
    assert_same(form, logits[0], whole(form, tokens)[start : start + TIME])


@every_form
@given(seed=SEEDS, prompt=st.integers(1, LENGTH), places=st.permutations(range(4)))
def test_on_the_grid_every_bit_is_kept(
    form: Form, seed: int, prompt: int, places: list[int]
) -> None:
    """In another row, alone, where others were and a step was taken back."""
    model, tokens = form.build(None), tokens_of(form, seed, LENGTH + 3)
    others = [tokens_of(form, seed + nth, nth * 40) for nth in range(1, 4)]
    crowd = [*others[: places[0]], tokens[:prompt], *others[places[0] :]]

    def answered(cache: Cache, rows: list[HostArray], row: int) -> HostArray:
        logits, cache = prefill(model, cache, rows)
        found = [logits[row, :prompt]]
        start = [len(each) for each in rows]
        for at in range(3):
            one = [tokens[prompt + at : prompt + at + 1]] * 4
            logits, cache = run(model, cache, one, [n + at for n in start], 1)
            found.append(logits[row])
        return np.concatenate(found)

    together = answered(new_cache(model, 4), crowd, places[0])
    _, used = prefill(model, new_cache(model, 4), crowd)
    alone = [tokens[:0]] * 4
    alone[places[1]] = tokens[:prompt]
    used = admitted(model, used, 4)
    np.testing.assert_array_equal(answered(used, alone, places[1]), together)


@with_pages
@pytest.mark.parametrize("page_size", PAGE_SIZES)
@given(seed=SEEDS)
def test_small_pages_in_any_order_equal_whole_rows(
    form: Form, page_size: int, seed: int
) -> None:
    model, per_row = form.build(page_size), MAX_LEN // page_size
    rows = [tokens_of(form, seed + row) for row in range(2)]
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
        np.testing.assert_array_equal(found, whole(form, row))


@with_pages
def test_tokens_past_the_end_of_a_row_are_dropped(form: Form) -> None:
    model = form.build(16)
    tokens, table = tokens_of(form, 0, TIME), np.array([[1, 0]], np.int32)
    kept, cache = run(model, model.fns.init_cache(3), [tokens], [0], TIME, table)
    full: Any = jax.tree.map(np.asarray, cache)
    _, cache = run(model, cache, [tokens], [TIME], TIME, table)
    chex.assert_trees_all_equal(full, jax.tree.map(np.asarray, cache))
    np.testing.assert_array_equal(kept[0], whole(form, tokens))


@with_pages
@pytest.mark.parametrize("page_size", [None, 16])
@given(seed=SEEDS, data=st.data())
def test_copying_pages_copies_exactly_what_was_asked(
    form: Form, page_size: int | None, seed: int, data: st.DataObject
) -> None:
    model = form.build(page_size)
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
    assert model.fns.token_axes is not None
    for leaf, axes in zip(jax.tree.leaves(expected), model.fns.token_axes, strict=True):
        outer = range(len(axes))
        for a, b, count in zip(source, target, length, strict=True):
            if b < 4:
                old, new = (np.moveaxis(leaf[p], axes, outer) for p in (b, a))
                at = np.unravel_index(np.arange(count), old.shape[: len(axes)])
                old[at] = new[at]
    chex.assert_trees_all_equal(jax.tree.map(np.asarray, found), expected)


def random_cache(model: TinyModel, seed: int) -> Any:
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jax.numpy.asarray(rng.standard_normal(leaf.shape, np.float32)),
        model.fns.init_cache(4),
    )
