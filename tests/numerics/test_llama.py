"""The transformer answers as transformers' `LlamaForCausalLM` does."""

import functools
from pathlib import Path

import chex
import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxserver.adapters.checkpoints.gguf import open_gguf
from jaxserver.adapters.checkpoints.safetensors import open_safetensors
from jaxserver.core.loading import load_params, read_config
from jaxserver.core.sharding import make_mesh
from jaxserver.core.transformer import transformer_fns
from jaxserver.ports.tensors import Checkpoint
from tests.numerics.llama_files import NAMES, VARIANTS, HostArray, write_gguf
from tests.rows import run, run_in_pieces
from tests.tiny import TinyModel

pytestmark = pytest.mark.usefixtures("strict_jax")
MAX_LEN = 256
TOLERANCE = 1e-4


def read_model(checkpoint: Checkpoint) -> TinyModel:
    mesh = make_mesh((1, 1, 1), ("dp", "fsdp", "mp"), jax.devices()[:1])
    config = read_config(checkpoint)
    dtypes = ("float32", "float32")
    params = load_params(config, checkpoint, mesh, dtypes, lambda *_: None)
    return TinyModel(transformer_fns(config, MAX_LEN), params, mesh)


@functools.cache
def model_of(variant: str) -> TinyModel:
    return read_model(open_safetensors(VARIANTS / variant))


def answer_of(variant: str) -> dict[str, HostArray]:
    answer: dict[str, HostArray] = load_file(VARIANTS / variant / "answer.safetensors")
    return answer


def whole(model: TinyModel, tokens: HostArray) -> HostArray:
    return run_in_pieces(model, tokens, [], len(tokens))


@pytest.mark.parametrize("variant", NAMES)
def test_a_prompt_run_whole_has_the_reference_logits(variant: str) -> None:
    answer = answer_of(variant)
    logits = whole(model_of(variant), answer["token_ids"])
    found = logits[answer["positions"]]
    np.testing.assert_allclose(found, answer["logits"], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("variant", NAMES)
def test_a_prompt_run_in_chunks_and_steps_has_them_too(variant: str) -> None:
    answer, model = answer_of(variant), model_of(variant)
    tokens = answer["token_ids"]
    chunks, steps = tokens[:130], tokens[130:]
    logits = [run_in_pieces(model, chunks, [1, 33, 64, 96, 126], 32)]
    _, cache = run(model, model.fns.init_cache(1), [chunks], [0], len(tokens))
    for at, token in enumerate(steps, len(chunks)):
        one, cache = run(model, cache, [token[None]], [at], 1)
        logits.append(one[0])
    found = np.concatenate(logits)[answer["positions"]]
    np.testing.assert_allclose(found, answer["logits"], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("variant", NAMES)
def test_the_same_model_as_gguf_has_the_same_weights(
    variant: str, tmp_path: Path
) -> None:
    model = read_model(open_gguf(write_gguf(variant, tmp_path / "model.gguf")))
    chex.assert_trees_all_equal(model.params, model_of(variant).params)


def test_and_the_same_logits_with_scaled_frequencies(tmp_path: Path) -> None:
    variant = "llama3_scaled"
    answer = answer_of(variant)
    model = read_model(open_gguf(write_gguf(variant, tmp_path / "model.gguf")))
    found = whole(model, answer["token_ids"])[answer["positions"]]
    np.testing.assert_allclose(found, answer["logits"], rtol=0, atol=TOLERANCE)


def test_between_them_the_variants_move_every_field() -> None:
    configs = [read_config(open_safetensors(VARIANTS / name)) for name in NAMES]
    kinds = {config.rope_scaling and config.rope_scaling.kind for config in configs}
    assert kinds == {None, "linear", "llama3"}
    assert {config.tied for config in configs} == {True, False}
    assert {config.attention_bias for config in configs} == {True, False}
    assert {config.mlp_bias for config in configs} == {True, False}
    assert {config.groups for config in configs} == {1, 2, 4}
    assert {config.head_dim for config in configs} == {8, 12, 16}
    assert len({config.rope_theta for config in configs}) == len(configs)
    assert len({config.norm_eps for config in configs}) > 1
