"""Native where the family is native, else a Flax class, unless one is forced."""

import dataclasses
import importlib.util
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import transformers

from jaxserver import JAXServer, wiring
from jaxserver.core.params import TransformerParams
from jaxserver.ports.config import ServerConfig
from jaxserver.ports.errors import BrokenCheckpoint, InvalidConfig, UnsupportedModel
from jaxserver.ports.types import GenerationRequest, SamplingParams
from tests.contract import tiny_tokenizers
from tests.engines import Records
from tests.fakes import known
from tests.flax_answers import tokenizer as flax_tokenizer
from tests.flax_folders import flat, random_flax, save
from tests.tiny_flax import TinyFlax
from tests.unit.adapters.checkpoints.files import write_gguf
from tests.unit.test_wiring import next_logits
from tests.unit.tiny_folder import VOCAB, nobody, write_model

pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated")
CONFIG = ServerConfig(slots=2, max_length=48, mesh_axes_shape=(1, 1, 1), dtype="fp32")


def write(tiny: TinyFlax, folder: Path, **config: Any) -> ServerConfig:
    save(tiny, folder)
    tiny_tokenizers.save(tiny_tokenizers.single_digits(), folder)
    return dataclasses.replace(CONFIG, model=str(folder), **config)


def test_a_llama_that_flax_wrote_runs_natively_on_its_own_weights(
    tmp_path: Path,
) -> None:
    tiny = random_flax("llama", rope_theta=500_000.0)
    params = wiring.load_model(write(tiny, tmp_path), nobody).params
    assert isinstance(params, TransformerParams)
    theirs = flat(tiny.params)
    np.testing.assert_array_equal(
        params.embedding, theirs["model/embed_tokens/embedding"]
    )
    np.testing.assert_array_equal(params.head, theirs["lm_head/kernel"].T)
    down = theirs["model/layers/1/mlp/down_proj/kernel"].T
    np.testing.assert_array_equal(params.layers[1].mlp.down, down)
    norm = theirs["model/layers/0/input_layernorm/weight"]
    np.testing.assert_array_equal(params.layers[0].attention_norm, norm)


def test_a_tied_llama_of_flax_with_another_head_is_broken(tmp_path: Path) -> None:
    tiny = random_flax("llama", tie_word_embeddings=True)
    with pytest.raises(BrokenCheckpoint, match="as tie_word_embeddings says") as caught:
        wiring.load_model(write(tiny, tmp_path), nobody).weights.result()
    assert caught.value.tensor == "lm_head.kernel"
    embedding = tiny.params["model"]["embed_tokens"]["embedding"]
    tiny.params["lm_head"]["kernel"] = embedding.T
    assert wiring.load_model(write(tiny, tmp_path), nobody).params.head is None


def test_either_backend_may_be_forced_and_gives_the_same_logits(tmp_path: Path) -> None:
    tiny = random_flax("llama", num_hidden_layers=1)
    models = [
        wiring.load_model(write(tiny, made(tmp_path / name), backend=name), nobody)
        for name in ("native", "flax")
    ]
    assert isinstance(models[0].params, TransformerParams)
    assert isinstance(models[1].params, dict)
    logits = [next_logits(model) for model in models]
    np.testing.assert_allclose(logits[0], logits[1], atol=1e-5)


def test_the_native_transformer_is_refused_where_it_does_not_know_the_family(
    tmp_path: Path,
) -> None:
    config = write(random_flax("gpt2"), tmp_path, backend="native")
    with pytest.raises(UnsupportedModel, match=r"'gpt2' .*supported: the llama family"):
        wiring.plan(config)


def test_the_flax_class_is_refused_where_it_ignores_a_setting(tmp_path: Path) -> None:
    tiny = random_flax("llama", mlp_bias=True)
    with pytest.raises(UnsupportedModel, match="mlp_bias True"):
        wiring.plan(write(tiny, tmp_path, backend="flax"))


@pytest.mark.parametrize("quantize", ["int8", "fp8"])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_8_bits_are_refused_for_a_flax_class(
    kind: str, quantize: str, tmp_path: Path
) -> None:
    tiny = random_flax(kind)
    config = write(tiny, tmp_path, backend="flax", quantize=quantize)
    for load in (
        lambda: wiring.plan(config),
        lambda: wiring.load_model(config, nobody),
        lambda: wiring.take_model(tiny.model, None, flax_tokenizer(), config),
    ):
        with pytest.raises(InvalidConfig) as caught:
            load()
        assert caught.value.key == "quantize"
        assert caught.value.got == f"{quantize!r} for {type(tiny.model).__name__}"
        assert caught.value.allowed.startswith("auto, none: a Flax class multiplies")


def test_the_flax_class_reads_no_gguf(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "m.gguf")
    config = dataclasses.replace(CONFIG, model=str(file), backend="flax")
    with pytest.raises(
        UnsupportedModel, match=r"m\.gguf by a Flax class .*: it natively"
    ):
        wiring.plan(config)


def test_without_flax_the_native_family_is_served_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "flax" else find(name)
    )
    native = dataclasses.replace(CONFIG, model=str(write_model(tmp_path / "llama")))
    assert wiring.plan(native).num_parameters > 0
    with pytest.raises(UnsupportedModel, match=r"pip install 'jaxserver\[flax\]'"):
        wiring.plan(write(random_flax("gpt2"), tmp_path / "gpt2"))


def test_from_torch_pretrained_needs_pytorch_and_says_what_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name: None if name == "torch" else find(name),
    )
    write(random_flax("gpt2"), tmp_path)
    with pytest.raises(UnsupportedModel, match=r"pip install torch.*JAXServer\.load"):
        JAXServer.from_torch_pretrained(tmp_path, CONFIG)


@pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="PyTorch is not installed"
)
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_pytorchs_own_files_answer_as_safetensors_do(kind: str, tmp_path: Path) -> None:
    import torch  # noqa: PLC0415  # there or not

    tiny = random_flax(kind)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(tiny.model.config)
    config = write(tiny, tmp_path)
    (tmp_path / "flax_model.msgpack").unlink()
    model.save_pretrained(tmp_path)
    expected = jax.tree.leaves(wiring.load_model(config, nobody).params)
    (tmp_path / "model.safetensors").unlink()
    model.save_pretrained(tmp_path, safe_serialization=False)
    for load in (wiring.load_model, wiring.load_torch_model):
        found = jax.tree.leaves(load(config, nobody).params)
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_array_equal(ours, theirs)


def made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def answers(model: wiring.Model, config: ServerConfig) -> tuple[list[int], int]:
    """Tokens, and how many of them were guessed; prompts begin alike."""
    compiled = wiring.compile_model(model, config, nobody)
    engine = wiring.start_engine(model, compiled, config, Records(), known())
    sampling = SamplingParams(greedy=True, max_new_tokens=24, ignore_eos=True)
    try:
        chunks = [
            chunk
            for prompt in ("the quick brown fox jumps", "the quick brown fox sleeps")
            for chunk in engine.generate(
                GenerationRequest(prompt=prompt, sampling=sampling)
            )
        ]
        accepted = engine.loop.stats.accepted_tokens
    finally:
        engine.close(5.0)
    return [token for chunk in chunks for token in chunk.token_ids], accepted


@pytest.mark.parametrize("page_size", [None, 16])
def test_a_smaller_model_guesses_and_the_answers_stay(
    tmp_path: Path, page_size: int | None
) -> None:
    folder = write_model(made(tmp_path / "model"))
    draft = write_model(made(tmp_path / "draft"))
    config = dataclasses.replace(
        CONFIG, model=str(folder), speculate=str(draft), page_size=page_size
    )
    alone = dataclasses.replace(config, speculate="none")
    models = [wiring.load_model(one, nobody) for one in (config, alone)]
    assert models[0].plan.weights_bytes_per_device == 2 * (
        models[1].plan.weights_bytes_per_device
    )
    assert models[0].fns.guess is not None
    (found, accepted), (expected, none) = (answers(m, config) for m in models)
    assert found == expected
    assert accepted > none == 0


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"vocab_size": 99}, "with a vocabulary of 99"),
        ({"vocab_size": VOCAB, "max_position_embeddings": 16}, "made for 16 tokens"),
    ],
)
def test_a_draft_that_does_not_fit_is_refused_by_name(
    tmp_path: Path, change: dict[str, Any], expected: str
) -> None:
    folder = write_model(made(tmp_path / "model"))
    tiny = random_flax("llama", **change)
    draft = write(tiny, made(tmp_path / "draft")).model
    config = dataclasses.replace(CONFIG, model=str(folder), speculate=draft)
    with pytest.raises(InvalidConfig, match="speculate") as caught:
        wiring.load_model(config, nobody)
    assert expected in str(caught.value)


def test_a_flax_class_has_no_draft(tmp_path: Path) -> None:
    draft = write_model(made(tmp_path / "draft"))
    tiny = random_flax("gpt2")
    config = write(tiny, made(tmp_path / "model"), speculate=str(draft))
    with pytest.raises(InvalidConfig, match="speculate"):
        wiring.load_model(config, nobody)
