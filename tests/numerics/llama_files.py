"""The random models of `reference/make_llama_variants.py`, also written as GGUF."""

import json
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes  # noqa: F401  # teaches numpy the name bfloat16
import numpy as np
from safetensors.numpy import load_file

VARIANTS = Path(__file__).parents[1] / "reference" / "llama_variants"
NAMES = sorted(folder.name for folder in VARIANTS.iterdir())
HostArray = np.ndarray[Any, np.dtype[Any]]

_LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_OUTER_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}


def write_gguf(variant: str, path: Path) -> Path:
    """The same model in llama.cpp's names, order and settings, in float32."""
    config = json.loads((VARIANTS / variant / "config.json").read_text())
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_vocab_size(config["vocab_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    _add_scaling(writer, config)
    for name, values in load_file(VARIANTS / variant / "model.safetensors").items():
        tensor = _llama_cpp_order(name, values.astype(np.float32), config)
        writer.add_tensor(_llama_cpp_name(name), tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_scaling(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    scaling = config["rope_scaling"] or {"rope_type": "default"}
    if scaling["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(scaling["factor"])
    if scaling["rope_type"] == "llama3":
        writer.add_tensor("rope_freqs.weight", _llama3_factors(config, scaling))


def _llama3_factors(config: dict[str, Any], scaling: dict[str, Any]) -> HostArray:
    """What llama.cpp divides each pair's frequency by."""
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    factors = []
    for pair in range(config["head_dim"] // 2):
        wavelength = 2 * np.pi * config["rope_theta"] ** (2 * pair / config["head_dim"])
        turns = scaling["original_max_position_embeddings"] / wavelength
        if turns > high:
            factors.append(1.0)
        elif turns < low:
            factors.append(scaling["factor"])
        else:
            smooth = (turns - low) / (high - low)
            factors.append(1 / ((1 - smooth) / scaling["factor"] + smooth))
    return np.array(factors, np.float32)


def _llama_cpp_name(name: str) -> str:
    stem, suffix = name.rsplit(".", 1)
    if stem in _OUTER_NAMES:
        return f"{_OUTER_NAMES[stem]}.{suffix}"
    layer, rest = stem.removeprefix("model.layers.").split(".", 1)
    return f"blk.{layer}.{_LAYER_NAMES[rest]}.{suffix}"


def _llama_cpp_order(name: str, values: HostArray, config: dict[str, Any]) -> HostArray:
    """Queries and keys with the two halves of every head side by side."""
    heads = {
        "q_proj": config["num_attention_heads"],
        "k_proj": config["num_key_value_heads"],
    }
    projection = name.split(".")[-2]
    if projection not in heads:
        return values
    by_half = values.reshape(heads[projection], 2, -1, *values.shape[1:])
    return np.ascontiguousarray(by_half.swapaxes(1, 2)).reshape(values.shape)
