"""The llama family: its configuration and tensor names, as files write them down."""

from collections.abc import Iterable, Mapping
from typing import Any

from jaxserver.core.config import ModelConfig, RopeScaling
from jaxserver.core.families.parts import Part, PartTable
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
        raise UnsupportedModel(f"a GGUF file of architecture {kind}", SUPPORTED)
    names = frozenset(tensors)

    def get(key: str, default: Any = None) -> Any:
        value = metadata.get(f"llama.{key}", default)
        if value is None:
            raise UnsupportedModel(
                f"a GGUF file without the key llama.{key}", SUPPORTED
            )
        if not isinstance(value, int | float):
            raise UnsupportedModel(f"a list under llama.{key}", "one number there")
        return value

    num_heads, embed = get("attention.head_count"), get("embedding_length")
    head_dim = get("attention.key_length", embed // num_heads)
    for key in ("attention.value_length", "rope.dimension_count"):
        if get(key, head_dim) != head_dim:
            raise UnsupportedModel(f"llama.{key} {get(key)}", f"{head_dim} there")
    vocab = metadata.get("llama.vocab_size")
    return ModelConfig(
        vocab_size=vocab or len(metadata.get("tokenizer.ggml.tokens", ())),
        num_layers=get("block_count"),
        embed=embed,
        mlp=get("feed_forward_length"),
        num_heads=num_heads,
        num_kv_heads=get("attention.head_count_kv", num_heads),
        head_dim=head_dim,
        max_len=get("context_length"),
        norm_eps=get("attention.layer_norm_rms_epsilon"),
        rope_theta=float(get("rope.freq_base", 10_000.0)),
        rope_scaling=_gguf_scaling(metadata, rope_factors),
        tied="output.weight" not in names,
        attention_bias="blk.0.attn_q.bias" in names,
        mlp_bias="blk.0.ffn_up.bias" in names,
    )


def _gguf_scaling(
    metadata: Mapping[str, Any], rope_factors: tuple[float, ...]
) -> RopeScaling | None:
    if rope_factors:
        return RopeScaling(kind="factors", factors=rope_factors)
    kind = metadata.get("llama.rope.scaling.type", "none")
    if kind == "none":
        return None
    factor = metadata.get("llama.rope.scaling.factor")
    if kind == "linear" and factor is not None:
        return RopeScaling(kind="linear", factor=float(factor))
    raise UnsupportedModel(f"rotary scaling {kind!r}", "none, linear and llama3")


def from_huggingface(config: Mapping[str, Any]) -> ModelConfig:
    """Reads transformers' `config.json`.

    Raises:
        UnsupportedModel: The model type or one of its settings is not known here.
    """
    kind = config.get("model_type")
    if kind not in MODEL_TYPES:
        raise UnsupportedModel(f"model type {kind!r}", SUPPORTED)
    _check_fixed(config)

    def get(key: str) -> int:
        value = config.get(key)
        if not isinstance(value, int):
            got = f"a config.json with {key} {value!r}"
            raise UnsupportedModel(got, "a whole number there")
        return value

    num_heads, embed = get("num_attention_heads"), get("hidden_size")
    return ModelConfig(
        vocab_size=get("vocab_size"),
        num_layers=get("num_hidden_layers"),
        embed=embed,
        mlp=get("intermediate_size"),
        num_heads=num_heads,
        num_kv_heads=config.get("num_key_value_heads") or num_heads,
        head_dim=config.get("head_dim") or embed // num_heads,
        max_len=config.get("max_position_embeddings", 2048),
        norm_eps=float(config.get("rms_norm_eps", 1e-6)),
        rope_theta=float(_rope(config).get("rope_theta", 10_000.0)),
        rope_scaling=_huggingface_scaling(_rope(config)),
        tied=config.get("tie_word_embeddings", False),
        attention_bias=config.get("attention_bias", False),
        mlp_bias=config.get("mlp_bias", False),
    )


def _check_fixed(config: Mapping[str, Any]) -> None:
    """Settings that transformers applies and we do not are refused by name."""
    wanted = {"hidden_act": "silu", "pretraining_tp": 1, "partial_rotary_factor": 1.0}
    for key, only in wanted.items():
        if config.get(key) not in (None, only):
            raise UnsupportedModel(f"{key} {config[key]!r}", f"{key} {only!r}")
    if config.get("quantization_config"):
        raise UnsupportedModel("a quantised safetensors folder", "plain weights, GGUF")


def _rope(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Rotary settings, which stand in one of two places by transformers' version."""
    theta = {k: config[k] for k in ("rope_theta",) if k in config}
    nested = config.get("rope_parameters") or config.get("rope_scaling") or {}
    return {**theta, **nested}


def _huggingface_scaling(rope: Mapping[str, Any]) -> RopeScaling | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    try:
        if kind == "linear":
            return RopeScaling(kind="linear", factor=float(rope["factor"]))
        if kind == "llama3":
            return RopeScaling(
                kind="llama3",
                factor=float(rope["factor"]),
                low_freq_factor=float(rope["low_freq_factor"]),
                high_freq_factor=float(rope["high_freq_factor"]),
                original_max_len=rope["original_max_position_embeddings"],
            )
    except KeyError as key:
        got = f"rotary scaling {kind!r} without {key}"
        raise UnsupportedModel(got, "one with all its settings") from key
    raise UnsupportedModel(f"rotary scaling {kind!r}", "none, linear and llama3")


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
