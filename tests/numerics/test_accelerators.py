"""What is built for accelerators, emulated here, against what is built for a CPU.

The platform is said, not at hand: kernels are interpreted.
"""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
import pytest

from jaxserver.core.compute import ON_CPU, Compute
from jaxserver.core.config import EngineConfig
from jaxserver.core.executables import build_steps
from jaxserver.core.ops.fp8 import FP8
from jaxserver.ports.model import TokenBatch
from jaxserver.ports.types import SamplingParams
from tests.rows import HostArray, run_in_pieces
from tests.stepping import Part, Stepper, Wish, drawn
from tests.tiny import TINY_LLAMA, TinyModel, tiny_model

MODEL = dataclasses.replace(TINY_LLAMA, head_dim=16, attention_bias=True, tied=False)
GPU = Compute(platform="cuda", is_interpreted=True)
TPU = Compute(platform="tpu")
MAX_LEN, LENGTH = 256, 150
ENGINE = EngineConfig(slots=2, max_len=MAX_LEN, max_stream_tokens=8)
platforms = pytest.mark.parametrize("compute", [GPU, TPU], ids=["gpu", "tpu"])


@functools.cache
def model_of(
    compute: Compute, kept: str = "float32", page_size: int | None = None
) -> TinyModel:
    return tiny_model(MODEL, MAX_LEN, page_size, kept=kept, compute=compute)


def in_bfloat16(compute: Compute) -> Compute:
    return dataclasses.replace(compute, dtype="bfloat16")


def tokens_of(seed: int, length: int = LENGTH) -> HostArray:
    return np.random.default_rng(seed).integers(0, 64, length).astype(np.int32)


def logits_of(model: TinyModel, tokens: HostArray) -> HostArray:
    """Of a prompt in chunks of 32, and of what follows by one, and by four."""
    one_by_one = [*range(128, 138), *range(138, LENGTH, 4)]
    cache: Any = model.fns.init_cache(1)
    return run_in_pieces(model, tokens, [32, 64, 96, *one_by_one], 32, cache)


def greedy(model: TinyModel) -> list[list[int]]:
    """The answers of two requests, one of them longer, in blocks of decode steps."""
    steps = build_steps(model.fns, model.params, ENGINE, model.mesh)
    stepper, found = Stepper(steps, model.params, ENGINE), []
    for slot, length in enumerate((20, 24)):
        prompt = tuple(tokens_of(slot, length).tolist())
        wish = Wish(prompt=prompt, limit=MAX_LEN, sampling=SamplingParams(greedy=True))
        found.append(drawn(stepper.prefill(Part(wish=wish, slot=slot)), 0))
    for _ in range(3):
        outcome = stepper.decode(ENGINE.slots, 8)
        for slot, answer in enumerate(found):
            answer += drawn(outcome, slot)
    return found


@pytest.mark.parametrize(
    ("compute", "kept"),
    [(GPU, "float32"), (GPU, FP8), (TPU, "float32"), (TPU, "int8")],
)
def test_in_float32_answers_are_those_of_a_cpu(compute: Compute, kept: str) -> None:
    expected = greedy(model_of(ON_CPU, kept))
    assert len(set(expected[0])) > 10
    assert [len(answer) for answer in expected] == [25, 25]
    assert greedy(model_of(compute, kept)) == expected


@platforms
def test_in_float32_logits_are_close_to_those_of_a_cpu(compute: Compute) -> None:
    tokens = tokens_of(0)
    expected = logits_of(model_of(ON_CPU), tokens)
    found = logits_of(model_of(compute), tokens)
    np.testing.assert_allclose(found, expected, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("kept", ["bfloat16", "int8", FP8])
@platforms
def test_in_16_bits_logits_are_float32_and_nearly_those_of_a_cpu(
    compute: Compute, kept: str
) -> None:
    tokens = tokens_of(1)
    expected = logits_of(model_of(ON_CPU, kept), tokens)
    model = model_of(in_bfloat16(compute), kept)
    cache: Any = model.fns.init_cache(1)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(cache)} == {"bfloat16"}
    found = logits_of(model, tokens)
    assert found.dtype == np.float32
    error = np.sqrt(np.mean((found - expected) ** 2)) / expected.std()
    assert 0 < error < 0.05


def code_of(compute: Compute, kept: str, time: int) -> str:
    """As far as JAX makes it without the device, which for cuDNN is not at all."""
    model = model_of(compute, kept, page_size=16)
    arrays: dict[str, Any] = dict(
        tokens=np.zeros((2, time), np.int32),
        start=np.zeros(2, np.int32),
        length=np.zeros(2, np.int32),
        page_table=np.zeros((2, MAX_LEN // 16), np.int32),
        logits_at=np.zeros((2, 1), np.int32),
    )
    extend: Any = jax.jit(model.fns.extend)
    traced = extend.trace(model.params, model.fns.init_cache(8), TokenBatch(**arrays))
    lowered: str = traced.lower(lowering_platforms=(compute.platform,)).as_text()
    return lowered


@pytest.mark.parametrize("kept", ["bfloat16", "int8", FP8])
@pytest.mark.parametrize(("platform", "time"), [("cuda", 1), ("tpu", 1), ("tpu", 32)])
def test_what_is_built_is_code_for_its_platform(
    platform: str, time: int, kept: str
) -> None:
    code = code_of(Compute(platform=platform, dtype="bfloat16"), kept, time)
    assert ("triton" in code) == (platform == "cuda")
    assert "HIGHEST" not in code


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_in_float32_factors_keep_all_their_bits(platform: str) -> None:
    code = code_of(Compute(platform=platform), "float32", 32)
    products = [line for line in code.splitlines() if "stablehlo.dot_general" in line]
    assert products
    assert all("HIGHEST" in line for line in products)
