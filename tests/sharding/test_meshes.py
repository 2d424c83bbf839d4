"""A model that lies on several devices is the model that lies on one."""

import dataclasses

import jax
import numpy as np
import pytest

from tests.sharding.models import (
    ANSWER,
    FEW_HEADS,
    FLAX,
    MESHES,
    NATIVE,
    ONE,
    SLOTS,
    WISHES,
    Shape,
    answers,
    prefill_length,
    tiny,
)
from tests.stepping import Part

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*is deprecated", "ignore:.*one_hot", "ignore:.*Explicitly requested"
)
FEW: list[tuple[str, Shape]] = [
    ("native", (2, 2, 2)),
    ("native", (8, 1, 1)),
    ("native in int8", (2, 2, 2)),
    ("opt", (2, 2, 2)),
    ("t5", (1, 1, 8)),
]
SMALL_TABLES = ["wpe", "embed_positions", "relative_attention_bias", ".scale", ".sums"]
"""Cut along one axis of the mesh at most."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A few models and meshes, or with `--every-mesh` each model on each mesh."""
    every = [(kind, shape) for kind in (*NATIVE, *FLAX) for shape in MESHES]
    pairs = every if metafunc.config.getoption("--every-mesh") else FEW
    if metafunc.function is test_scoring_an_answer_gives_the_bits_that_drawing_it_gave:
        # A Flax class's bits depend on the shape of a call.
        pairs = [pair for pair in pairs if pair[0] in NATIVE]
    if "kind" in metafunc.fixturenames:
        metafunc.parametrize(("kind", "shape"), pairs, ids=str)


def test_answers_are_those_of_one_device(kind: str, shape: Shape) -> None:
    found, expected = answers(kind, shape), answers(kind, ONE)
    rows = list(WISHES)
    assert found.tokens == expected.tokens
    assert all(len(tokens) == 1 + ANSWER for tokens in found.tokens)
    np.testing.assert_allclose(
        found.logits[rows], expected.logits[rows], atol=1e-5, rtol=0
    )
    np.testing.assert_allclose(found.logprobs, expected.logprobs, atol=1e-5, rtol=0)


def test_a_request_has_the_bits_alone_that_it_has_in_company(
    kind: str, shape: Shape
) -> None:
    fns, _, steps, _, _ = tiny(kind, shape)
    steps.clear()
    for begin, end in [(0, 7), (7, 15), (15, None)] if not fns.chunk else [(0, None)]:
        part = Part(wish=WISHES[3], slot=6, start=begin, end=end)
        first = steps.prefill(part, time=prefill_length(steps.engine))
    rest = steps.decode(SLOTS, ANSWER)
    found = np.concatenate([first.top_logprobs[0], rest.top_logprobs[6]])
    np.testing.assert_array_equal(found, answers(kind, shape).logprobs[1])


def test_scoring_an_answer_gives_the_bits_that_drawing_it_gave(
    kind: str, shape: Shape
) -> None:
    steps, expected = tiny(kind, shape).steps, answers(kind, shape)
    prompt = (*WISHES[3].prompt, *expected.tokens[1][:2])
    steps.clear()
    longer = dataclasses.replace(WISHES[3], prompt=prompt)
    part, time = (
        Part(wish=longer, slot=0),
        steps.engine.score_length or prefill_length(steps.engine),
    )
    scored = steps.prefill(part, time=time)
    np.testing.assert_array_equal(scored.top_logprobs[0, 0], expected.logprobs[1, 2])


def test_weights_are_cut_but_for_those_that_the_plan_lists(
    kind: str, shape: Shape
) -> None:
    _, specs, steps, plan, mesh = tiny(kind, shape)
    params = jax.tree.leaves(steps.params)
    sizes = {s.path: leaf.nbytes for s, leaf in zip(specs, params, strict=True)}
    listed = sum(sizes[path] for path in plan.replicated)
    shared_by = mesh.shape["fsdp"] * mesh.shape["mp"]
    held = bytes_on_each_device(params)
    assert max(held) <= sum(sizes.values()) // shared_by + listed
    assert held == [plan.weights_bytes_per_device] * 8
    if kind == FEW_HEADS:
        return
    assert not plan.undivided
    for spec in specs:
        if spec.path in plan.replicated and sum(size > 1 for size in spec.shape) > 1:
            assert any(name in spec.path for name in SMALL_TABLES)


def test_rows_and_heads_of_the_cache_are_cut(kind: str, shape: Shape) -> None:
    fns, _, steps, plan, mesh = tiny(kind, shape)
    steps.clear()
    cache = jax.tree.leaves(steps.state.cache)
    assert bytes_on_each_device(cache) == [plan.cache_bytes_per_device] * 8
    rows = mesh.shape["dp"] * mesh.shape["fsdp"]
    num_heads = 2 if kind == FEW_HEADS else 8
    heads = 1 if num_heads % mesh.shape["mp"] else mesh.shape["mp"]
    has_heads = ["kv_heads" in fns.cache_axes(leaf.shape) for leaf in cache]
    assert any(has_heads)
    for leaf, is_by_head in zip(cache, has_heads, strict=True):
        parts = leaf.size // leaf.addressable_shards[0].data.size
        assert parts == (rows * heads if is_by_head else rows)


def bytes_on_each_device(leaves: list[jax.Array]) -> list[int]:
    return [
        sum(leaf.addressable_shards[at].data.nbytes for leaf in leaves)
        for at in range(8)
    ]
