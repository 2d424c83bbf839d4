from typing import Any

import pytest

from jaxserver.core.config import RopeScaling
from jaxserver.core.families.llama import (
    from_gguf,
    from_huggingface,
    gguf_parts,
    huggingface_parts,
)
from jaxserver.ports.errors import UnsupportedModel

GGUF: dict[str, Any] = {
    "general.architecture": "llama",
    "llama.vocab_size": 50,
    "llama.block_count": 3,
    "llama.embedding_length": 24,
    "llama.feed_forward_length": 40,
    "llama.attention.head_count": 6,
    "llama.attention.head_count_kv": 2,
    "llama.context_length": 128,
    "llama.attention.layer_norm_rms_epsilon": 0.5,
}
HUGGINGFACE: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 50,
    "num_hidden_layers": 3,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_attention_heads": 6,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8,
    "low_freq_factor": 1,
    "high_freq_factor": 4,
    "original_max_position_embeddings": 64,
}
SCALED = RopeScaling(
    kind="llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_len=64,
)


def test_gguf_metadata_says_the_sizes() -> None:
    config = from_gguf(GGUF, ["output.weight"], ())
    assert (config.vocab_size, config.num_layers, config.embed) == (50, 3, 24)
    assert (config.mlp, config.num_heads, config.num_kv_heads) == (40, 6, 2)
    assert (config.head_dim, config.max_len, config.norm_eps) == (4, 128, 0.5)
    assert (config.rope_theta, config.rope_scaling) == (10_000.0, None)
    assert not any([config.tied, config.attention_bias, config.mlp_bias])


def test_gguf_tensors_say_what_is_tied_and_biased() -> None:
    config = from_gguf(GGUF, ["blk.0.attn_q.bias", "blk.0.ffn_up.bias"], ())
    assert config.tied
    assert config.attention_bias
    assert config.mlp_bias


def test_gguf_settings_that_stand_there_are_taken() -> None:
    more = {
        "llama.attention.key_length": 8,
        "llama.attention.value_length": 8,
        "llama.rope.dimension_count": 8,
        "llama.rope.freq_base": 500_000,
        "llama.rope.scaling.type": "linear",
        "llama.rope.scaling.factor": 4,
    }
    config = from_gguf(GGUF | more, [], ())
    assert (config.head_dim, config.rope_theta) == (8, 500_000.0)
    assert config.rope_scaling == RopeScaling(kind="linear", factor=4.0)


def test_gguf_frequency_factors_are_taken_as_they_are() -> None:
    config = from_gguf(GGUF | {"llama.rope.scaling.type": "none"}, [], (1.0, 2.0))
    assert config.rope_scaling == RopeScaling(kind="factors", factors=(1.0, 2.0))
    for factors in ((1.0,), (1.0, 0.0), (1.0, float("nan"))):
        with pytest.raises(UnsupportedModel, match="2 of them, each above 0"):
            from_gguf(GGUF, [], factors)


def test_a_gguf_vocabulary_may_be_counted() -> None:
    metadata = {**GGUF, "tokenizer.ggml.tokens": ["a", "b", "c"]}
    del metadata["llama.vocab_size"]
    assert from_gguf(metadata, [], ()).vocab_size == 3


def test_key_value_heads_default_to_the_heads() -> None:
    metadata = {k: v for k, v in GGUF.items() if not k.endswith("head_count_kv")}
    assert from_gguf(metadata, [], ()).num_kv_heads == 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"general.architecture": "gemma"}, "architecture gemma cannot be served"),
        ({"llama.expert_count": 8}, "architecture llama cannot be served"),
        ({"llama.block_count": None}, "llama.block_count None .*: a whole number"),
        ({"llama.attention.head_count_kv": [1, 2]}, r"head_count_kv \[1, 2\]"),
        ({"llama.rope.dimension_count": 2}, r"rope.dimension_count 2 .*: 4 there"),
        ({"llama.attention.value_length": 3}, "attention.value_length 3"),
        ({"llama.attention.head_count": 0}, "head_count 0"),
        ({"llama.context_length": 1}, "context_length 1 .*: a whole number from 2"),
        ({"llama.attention.layer_norm_rms_epsilon": "x"}, "rms_epsilon 'x'"),
        ({"llama.rope.scaling.type": "yarn"}, "rotary scaling 'yarn'"),
        ({"llama.rope.scaling.type": "linear"}, "llama.rope.scaling.factor None"),
    ],
)
def test_what_a_gguf_file_has_and_we_do_not_is_refused_by_name(
    change: dict[str, Any], message: str
) -> None:
    with pytest.raises(UnsupportedModel, match=message):
        from_gguf(GGUF | change, [], ())


def test_a_config_json_says_the_sizes_and_has_transformers_defaults() -> None:
    config = from_huggingface(HUGGINGFACE)
    assert (config.vocab_size, config.num_layers, config.embed) == (50, 3, 24)
    assert (config.mlp, config.num_heads, config.num_kv_heads) == (40, 6, 6)
    assert (config.head_dim, config.max_len, config.norm_eps) == (4, 2048, 1e-6)
    assert (config.rope_theta, config.rope_scaling) == (10_000.0, None)
    assert not any([config.tied, config.attention_bias, config.mlp_bias])


def test_what_a_config_json_sets_is_taken() -> None:
    more = {
        "num_key_value_heads": 3,
        "head_dim": 16,
        "max_position_embeddings": 99,
        "rms_norm_eps": 1,
        "rope_theta": 7,
        "tie_word_embeddings": True,
        "attention_bias": True,
        "mlp_bias": True,
        "hidden_act": "silu",
        "quantization_config": None,
    }
    config = from_huggingface(HUGGINGFACE | more)
    assert (config.num_kv_heads, config.head_dim, config.max_len) == (3, 16, 99)
    assert (config.norm_eps, config.rope_theta) == (1.0, 7.0)
    assert config.tied
    assert config.attention_bias
    assert config.mlp_bias


@pytest.mark.parametrize(
    ("rope", "theta", "scaling"),
    [
        ({"rope_scaling": None}, 10_000.0, None),
        ({"rope_scaling": {"rope_type": "default"}}, 10_000.0, None),
        (
            {"rope_theta": 5, "rope_scaling": {"type": "linear", "factor": 2}},
            5.0,
            RopeScaling(kind="linear", factor=2.0),
        ),
        ({"rope_theta": 5, "rope_scaling": LLAMA3}, 5.0, SCALED),
        ({"rope_parameters": {**LLAMA3, "rope_theta": 9}}, 9.0, SCALED),
    ],
)
def test_rotary_settings_are_read_from_either_place(
    rope: dict[str, Any], theta: float, scaling: RopeScaling | None
) -> None:
    config = from_huggingface(HUGGINGFACE | rope)
    assert (config.rope_theta, config.rope_scaling) == (theta, scaling)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "mistral"}, "model type 'mistral'"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' .*: hidden_act 'silu'"),
        ({"pretraining_tp": 2}, "pretraining_tp 2"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
        ({"quantization_config": {"bits": 4}}, "a quantised safetensors folder"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "rotary scaling 'yarn'"),
        ({"rope_scaling": {"type": "linear"}}, "factor None .*: a number above 0"),
        ({"hidden_size": None}, "hidden_size None"),
        ({"vocab_size": "many"}, "vocab_size 'many'"),
        ({"model_type": ["llama"]}, r"model type \['llama'\]"),
        ({"num_hidden_layers": 2**40}, "num_hidden_layers 1099511627776"),
        ({"num_attention_heads": 0}, "num_attention_heads 0 .*: a whole number from 1"),
        ({"num_key_value_heads": 4}, "6 heads and 4 key-value heads"),
        ({"head_dim": 5}, "a width of 5"),
        ({"head_dim": True}, "head_dim True"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps nan"),
        ({"rope_theta": -1}, "rope_theta -1"),
        ({"rope_scaling": [2]}, r"rope_scaling \[2\] .*: an object"),
        ({"rope_scaling": {**LLAMA3, "high_freq_factor": 1}}, "low_freq_factor 1"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings 'no'"),
    ],
)
def test_what_a_config_json_has_and_we_do_not_is_refused_by_name(
    change: dict[str, Any], message: str
) -> None:
    with pytest.raises(UnsupportedModel, match=message):
        from_huggingface(HUGGINGFACE | change)


def test_only_llama_cpp_stores_queries_and_keys_interleaved() -> None:
    assert [part.interleaved for part in gguf_parts(1).qkv] == [True, True, False]
    assert not any(part.interleaved for part in huggingface_parts(1).qkv)
    assert gguf_parts(1).down.name == "blk.1.ffn_down"
    assert huggingface_parts(1).down.name == "model.layers.1.mlp.down_proj"
