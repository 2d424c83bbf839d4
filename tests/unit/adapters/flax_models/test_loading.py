"""Which Flax class a folder is for, and with which settings."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import jax
import pytest
from transformers import (
    AutoConfig,
    BertConfig,
    EncoderDecoderConfig,
    FlaxAutoModelForCausalLM,
    FlaxGPT2LMHeadModel,
    GPT2Config,
)
from transformers.models.auto import configuration_auto, modeling_flax_auto

from jaxserver.adapters.flax_models.loading import empty_model
from jaxserver.ports.errors import BrokenCheckpoint, UnsupportedModel
from jaxserver.ports.tensors import Checkpoint
from tests import tiny_flax
from tests.unit.adapters.checkpoints.files import write_json

pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated")
BART, GPT2 = tiny_flax.CAUSAL["bart"], tiny_flax.CAUSAL["gpt2"]


class OwnConfig(GPT2Config):  # type: ignore[misc]  # transformers has no types
    model_type = "own-to-the-tests"


class FlaxOwnModel(FlaxGPT2LMHeadModel):  # type: ignore[misc]  # likewise
    config_class = OwnConfig


def folder(path: Path, **settings: Any) -> Checkpoint:
    """One of which nothing but the settings is there."""
    write_json(path / "config.json", settings)
    tensors: Any = None
    return Checkpoint(path=str(path), layout="flax", config=settings, tensors=tensors)


def class_of(path: Path, **settings: Any) -> str:
    return type(empty_model(folder(path, **settings), "float32")).__name__


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        (["BartForCausalLM"], "FlaxBartForCausalLM"),
        (["FlaxBartForCausalLM"], "FlaxBartForCausalLM"),
        (["BartForConditionalGeneration"], "FlaxBartForConditionalGeneration"),
        (None, "FlaxBartForConditionalGeneration"),
    ],
)
def test_the_class_is_the_named_one_or_the_model_types(
    named: list[str] | None, expected: str, tmp_path: Path
) -> None:
    settings = {**BART, "model_type": "bart", "architectures": named}
    assert class_of(tmp_path, **settings) == expected


def test_without_an_encoder_the_model_types_class_is_the_causal_one(
    tmp_path: Path,
) -> None:
    settings = {**BART, "model_type": "bart", "is_encoder_decoder": False}
    assert class_of(tmp_path, **settings) == "FlaxBartForCausalLM"


def test_a_class_of_pytorchs_without_a_twin_is_served_by_type_and_that_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {"model_type": "gpt2", "architectures": ["GPT2Model"], **GPT2}
    assert class_of(tmp_path, **settings) == "FlaxGPT2LMHeadModel"
    assert "a model saved as GPT2Model is served as FlaxGPT2LMHeadModel" in caplog.text


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"model_type": "gpt2", "architectures": ["MyLM"], **GPT2}, "'MyLM'"),
        ({"model_type": "never-heard-of"}, "'never-heard-of'"),
        ({"model_type": "vit"}, "'vit'"),
        ({}, "None"),
    ],
)
def test_what_no_class_is_for_is_refused_with_what_can_be_done(
    settings: dict[str, Any], named: str, tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedModel, match=named) as caught:
        empty_model(folder(tmp_path, **settings), "float32")
    assert "JAXServer.load_from_params" in caught.value.supported


def test_settings_that_the_class_cannot_take_are_refused(tmp_path: Path) -> None:
    settings = {"model_type": "gpt2", **GPT2, "activation_function": "silly"}
    with pytest.raises(UnsupportedModel, match="activation_function 'silly'"):
        empty_model(folder(tmp_path, **settings), "float32")


def test_a_class_of_ones_own_is_found_where_transformers_was_told_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs = configuration_auto.CONFIG_MAPPING._extra_content
    models = modeling_flax_auto.FLAX_MODEL_FOR_CAUSAL_LM_MAPPING._extra_content
    for registered in (configs, models):
        for key, value in dict(registered).items():
            monkeypatch.setitem(registered, key, value)
    AutoConfig.register(OwnConfig.model_type, OwnConfig)
    FlaxAutoModelForCausalLM.register(OwnConfig, FlaxOwnModel)
    try:
        settings = {**GPT2, "model_type": OwnConfig.model_type}
        for named in ("FlaxOwnModel", "OwnModel"):
            found = class_of(tmp_path, **settings, architectures=[named])
            assert found == "FlaxOwnModel"
    finally:
        configs.pop(OwnConfig.model_type)
        models.pop(OwnConfig)


def test_a_setting_that_the_class_ignores_is_refused_before_it_is_made(
    tmp_path: Path,
) -> None:
    settings = {**tiny_flax.CAUSAL["gptj"], "tie_word_embeddings": True}
    with pytest.raises(UnsupportedModel, match="tie_word_embeddings True"):
        empty_model(folder(tmp_path, model_type="gptj", **settings), "float32")


def test_generation_settings_of_the_folder_go_before_those_of_the_model(
    tmp_path: Path,
) -> None:
    checkpoint = folder(tmp_path, model_type="gpt2", **GPT2)
    assert empty_model(checkpoint, "float32").generation_config.eos_token_id == 2
    write_json(tmp_path / "generation_config.json", {"eos_token_id": [5, 6]})
    settings = empty_model(checkpoint, "float32").generation_config
    assert settings.eos_token_id == [5, 6]
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(BrokenCheckpoint, match="expected generation settings"):
        empty_model(checkpoint, "float32")


def test_no_weights_are_made(tmp_path: Path) -> None:
    decoder = GPT2Config(**GPT2, is_decoder=True, add_cross_attention=True)
    composed = EncoderDecoderConfig.from_encoder_decoder_configs(
        BertConfig(**tiny_flax.CAUSAL["bert"]), decoder
    )
    settings = json.loads(composed.to_json_string())
    before = {id(array) for array in jax.live_arrays()}
    made = [
        empty_model(folder(tmp_path, **settings), "float32"),
        empty_model(folder(tmp_path, model_type="gpt2", **GPT2), "float32"),
    ]
    new = [array for array in jax.live_arrays() if id(array) not in before]
    assert sum(array.size for array in new) < 20 * len(made)
    for model in made:
        with pytest.raises(ValueError, match="cannot be accessed"):
            _ = model.params
    assert {"encoder", "decoder"} <= made[0].params_shape_tree.keys()


def test_without_flax_it_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UnsupportedModel, match=r"without Flax.*jaxserver\[flax\]"):
        empty_model(folder(tmp_path, model_type="gpt2", **GPT2), "float32")
