"""The llama family: its configuration and tensor names, as files write them down."""

import reprlib
from collections.abc import Iterable, Mapping
from typing import Any

from jaxserver.core.config import ModelConfig, RopeScaling
from jaxserver.core.families.parts import Part, PartTable
from jaxserver.core.families.settings import Settings
from jaxserver.ports.errors import UnsupportedModel

MODEL_TYPES = frozenset({"llama"})
SUPPORTED = "the llama family (SmolLM, Llama 2 and 3, TinyLlama and others like them)"


def from_gguf(
    metadata: Mapping[str, Any], tensors: Iterable[str], rope_factors: tuple[float, ...]
) -> ModelConfig:
    """Reads llama.cpp's metadata.

    Args:
        metadata: The file's keys and values.
        tensors: Names of the tensors in the file.
        rope_factors: Contents of the tensor `rope_freqs.weight`, where there is one.

    Raises:
        UnsupportedModel: The architecture or one of its settings is not known here.
    """
    kind = str(metadata.get("general.architecture"))
    if kind != "llama" or metadata.get("llama.expert_count"):
        raise UnsupportedModel(f"a GGUF file of architecture {kind:.40}", SUPPORTED)
    names = frozenset(tensors)
    said = Settings(metadata, "a GGUF file", "llama.")
    num_heads, embed = said.size("attention.head_count"), said.size("embedding_length")
    head_dim = said.size("attention.key_length", embed // num_heads)
    for key in ("attention.value_length", "rope.dimension_count"):
        if said.size(key, head_dim) != head_dim:
            raise said.refused(key, f"{head_dim} there")
    tokens = metadata.get("tokenizer.ggml.tokens")
    return _checked(
        ModelConfig(
            vocab_size=said.size(
                "vocab_size", len(tokens) if isinstance(tokens, list) else None
            ),
            num_layers=said.size("block_count"),
            embed=embed,
            mlp=said.size("feed_forward_length"),
            num_heads=num_heads,
            num_kv_heads=said.size("attention.head_count_kv", num_heads),
            head_dim=head_dim,
            max_len=said.size("context_length", least=2),
            norm_eps=said.real("attention.layer_norm_rms_epsilon"),
            rope_theta=said.real("rope.freq_base", 10_000.0),
            rope_scaling=_gguf_scaling(said, rope_factors, head_dim),
            tied="output.weight" not in names,
            attention_bias="blk.0.attn_q.bias" in names,
            mlp_bias="blk.0.ffn_up.bias" in names,
        )
    )


def _gguf_scaling(
    said: Settings, rope_factors: tuple[float, ...], head_dim: int
) -> RopeScaling | None:
    if rope_factors:
        if len(rope_factors) != head_dim // 2 or not all(f > 0 for f in rope_factors):
            got = f"a GGUF file with {len(rope_factors)} factors in rope_freqs.weight"
            raise UnsupportedModel(got, f"{head_dim // 2} of them, each above 0")
        return RopeScaling(kind="factors", factors=rope_factors)
    kind = said.get("rope.scaling.type", "none")
    if kind == "none":
        return None
    if kind == "linear":
        return RopeScaling(kind="linear", factor=said.real("rope.scaling.factor"))
    raise _unknown_scaling(kind)


def from_huggingface(config: Mapping[str, Any]) -> ModelConfig:
    """Reads transformers' `config.json`.

    Raises:
        UnsupportedModel: The model type or one of its settings is not known here.
    """
    said = Settings(config, "a config.json")
    if not is_known(config):
        raise UnsupportedModel(
            f"model type {reprlib.repr(said.get('model_type'))}", SUPPORTED
        )
    _check_fixed(said)
    num_heads, embed = said.size("num_attention_heads"), said.size("hidden_size")
    rope = _rope(said)
    return _checked(
        ModelConfig(
            vocab_size=said.size("vocab_size"),
            num_layers=said.size("num_hidden_layers"),
            embed=embed,
            mlp=said.size("intermediate_size"),
            num_heads=num_heads,
            num_kv_heads=said.size("num_key_value_heads", num_heads),
            head_dim=said.size("head_dim", embed // num_heads),
            max_len=said.size("max_position_embeddings", 2048, least=2),
            norm_eps=said.real("rms_norm_eps", 1e-6),
            rope_theta=rope.real("rope_theta", 10_000.0),
            rope_scaling=_huggingface_scaling(rope),
            tied=said.flag("tie_word_embeddings"),
            attention_bias=said.flag("attention_bias"),
            mlp_bias=said.flag("mlp_bias"),
        )
    )


def is_known(config: Mapping[str, Any]) -> bool:
    """Whether a `config.json` is of this family."""
    kind = config.get("model_type")
    return isinstance(kind, str) and kind in MODEL_TYPES


def _checked(config: ModelConfig) -> ModelConfig:
    heads, kv_heads = config.num_heads, config.num_kv_heads
    if heads % kv_heads:
        got = f"a model of {heads} heads and {kv_heads} key-value heads"
        raise UnsupportedModel(got, "as many of these, or a whole multiple")
    if config.head_dim % 2:
        got = f"a model whose heads have a width of {config.head_dim}"
        raise UnsupportedModel(got, "even widths, which are rotated in pairs")
    return config


def _check_fixed(said: Settings) -> None:
    """Settings that transformers applies and we do not are refused by name."""
    wanted = {"hidden_act": "silu", "pretraining_tp": 1, "partial_rotary_factor": 1.0}
    for key, only in wanted.items():
        if said.get(key, only) != only:
            raise said.refused(key, f"{key} {only!r}")
    if said.get("quantization_config"):
        raise UnsupportedModel("a quantised safetensors folder", "plain weights, GGUF")


def _rope(said: Settings) -> Settings:
    """Rotary settings, which stand in one of two places by transformers' version."""
    nested = said.inner("rope_parameters").values or said.inner("rope_scaling").values
    theta = {"rope_theta": said.get("rope_theta")}
    return Settings({**theta, **nested}, said.file)


def _huggingface_scaling(rope: Settings) -> RopeScaling | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    if kind == "linear":
        return RopeScaling(kind="linear", factor=rope.real("factor"))
    if kind == "llama3":
        scaling = RopeScaling(
            kind="llama3",
            factor=rope.real("factor"),
            low_freq_factor=rope.real("low_freq_factor"),
            high_freq_factor=rope.real("high_freq_factor"),
            original_max_len=rope.size("original_max_position_embeddings"),
        )
        if scaling.low_freq_factor >= scaling.high_freq_factor:
            raise rope.refused("low_freq_factor", "less than high_freq_factor there")
        return scaling
    raise _unknown_scaling(kind)


def _unknown_scaling(kind: Any) -> UnsupportedModel:
    got = f"rotary scaling {reprlib.repr(kind)}"
    return UnsupportedModel(got, "none, linear and llama3")


def gguf_parts(layer: int) -> PartTable:
    """Where a layer's weights come from in llama.cpp's names.

    llama.cpp stores the two halves of a rotated head side by side.
    """
    here = f"blk.{layer}"
    query, key = (
        Part(f"{here}.attn_{letter}", interleaved=True) for letter in ("q", "k")
    )
    return PartTable(
        attention_norm=Part(f"{here}.attn_norm"),
        qkv=(query, key, Part(f"{here}.attn_v")),
        out=Part(f"{here}.attn_output"),
        mlp_norm=Part(f"{here}.ffn_norm"),
        gate_up=(Part(f"{here}.ffn_gate"), Part(f"{here}.ffn_up")),
        down=Part(f"{here}.ffn_down"),
    )


def huggingface_parts(layer: int) -> PartTable:
    """Where a layer's weights come from in transformers' names."""
    here = f"model.layers.{layer}"
    query, key, value, out = (
        Part(f"{here}.self_attn.{letter}_proj") for letter in ("q", "k", "v", "o")
    )
    gate, up, down = (
        Part(f"{here}.mlp.{name}_proj") for name in ("gate", "up", "down")
    )
    return PartTable(
        attention_norm=Part(f"{here}.input_layernorm"),
        qkv=(query, key, value),
        out=out,
        mlp_norm=Part(f"{here}.post_attention_layernorm"),
        gate_up=(gate, up),
        down=down,
    )
