"""A model that lies on several devices is the model that lies on one."""

import functools

import jax
import numpy as np
import pytest

from jaxserver.core.params import ParamSpec, init_params, param_specs
from jaxserver.core.sharding import make_mesh, named_sharding
from jaxserver.core.steps import build_steps
from jaxserver.core.transformer import transformer_fns
from jaxserver.ports.types import SamplingParams
from tests.engines import NARROW
from tests.stepping import Part, Stepper, Wish
from tests.tiny import TINY_LLAMA

LENGTH, ANSWER = 40, 6
PROMPT = tuple(np.random.default_rng(0).integers(0, 64, LENGTH).tolist())
WISH = Wish(prompt=PROMPT, sampling=SamplingParams(greedy=True, logprobs=20))


def stepper(shape: tuple[int, int, int]) -> Stepper:
    """The tiny model with its weights and cache cut as the mesh says."""
    count = int(np.prod(shape))
    mesh = make_mesh(shape, ("dp", "fsdp", "mp"), jax.devices()[:count])
    params = jax.tree.map(
        lambda spec, leaf: jax.device_put(
            leaf * (10.0 if leaf.ndim > 1 else 1.0),
            named_sharding(spec.axes, spec.shape, mesh),
        ),
        param_specs(TINY_LLAMA),
        init_params(TINY_LLAMA, seed=0),
        is_leaf=lambda leaf: isinstance(leaf, ParamSpec),
    )
    fns = transformer_fns(TINY_LLAMA, NARROW.max_len)
    return Stepper(build_steps(fns, params, NARROW, mesh), params, NARROW)


def answered(shape: tuple[int, int, int]) -> tuple[list[int], np.ndarray]:
    """Tokens, and the log-probabilities of the likeliest in their places."""
    steps = stepper(shape)
    steps.prefill(Part(wish=WISH, slot=1, start=0, end=32))
    first = steps.prefill(Part(wish=WISH, slot=1, start=32, end=LENGTH))
    rest = steps.decode(NARROW.slots, ANSWER)
    tokens = [int(first.tokens[0, 0]), *np.asarray(rest.tokens[1]).tolist()]
    logprobs = [np.asarray(first.top_logprobs[0]), np.asarray(rest.top_logprobs[1])]
    return tokens[: 1 + ANSWER], np.concatenate(logprobs)[: 1 + ANSWER]


@functools.cache
def on_one_device() -> tuple[list[int], np.ndarray]:
    return answered((1, 1, 1))


@pytest.mark.parametrize("shape", [(1, 4, 1), (2, 1, 2), (1, 2, 2), (4, 1, 1)], ids=str)
def test_an_answer_on_four_devices_is_that_on_one(shape: tuple[int, int, int]) -> None:
    tokens, logprobs = answered(shape)
    expected_tokens, expected = on_one_device()
    assert tokens == expected_tokens
    np.testing.assert_allclose(logprobs, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", [(1, 4, 1), (1, 2, 2)], ids=str)
def test_weights_are_really_cut(shape: tuple[int, int, int]) -> None:
    params = jax.tree.leaves(stepper(shape).params)
    cut = [leaf for leaf in params if not leaf.sharding.is_fully_replicated]
    held = [leaf.addressable_shards[0].data.nbytes for leaf in cut]
    assert len(cut) >= len(params) - 1 - 2 * TINY_LLAMA.num_layers  # all but the norms
    assert sum(held) * 4 == sum(leaf.nbytes for leaf in cut)
