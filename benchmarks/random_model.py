"""Writes a model of random weights as a sharded folder, as it would come from a hub."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

TINYLLAMA: Mapping[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 32_000,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10_000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
"""Sizes of TinyLlama: 1.1 billion parameters."""
SHARDS = 5

Array = np.ndarray[Any, np.dtype[Any]]


def write_random_model(folder: Path, config: Mapping[str, Any] = TINYLLAMA) -> None:
    """Writes weights in bfloat16, a layer at a time into one of the shards."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(dict(config)))
    write_bytes_tokenizer(folder)
    groups = list(_groups(config))
    weight_map: dict[str, str] = {}
    for shard in range(SHARDS):
        name = f"model-{shard + 1:05}-of-{SHARDS:05}.safetensors"
        tensors = {
            key: make() for group in groups[shard::SHARDS] for key, make in group
        }
        weight_map |= dict.fromkeys(tensors, name)
        save_file(tensors, folder / name)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def write_bytes_tokenizer(folder: Path) -> None:
    """One token a byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {char: place for place, char in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))


def _groups(config: Mapping[str, Any]) -> Iterator[list[tuple[str, Any]]]:
    """The tensors of each layer, and those around them, with how to make each."""
    rng = np.random.default_rng(0)
    embed, mlp = config["hidden_size"], config["intermediate_size"]
    head_dim = embed // config["num_attention_heads"]
    kv = config["num_key_value_heads"] * head_dim

    def random(*shape: int) -> Any:
        def make() -> Array:
            values = rng.standard_normal(shape, np.float32) * 0.02
            return values.astype(ml_dtypes.bfloat16)

        return make

    def ones() -> Array:
        return np.ones(embed, ml_dtypes.bfloat16)

    for layer in range(config["num_hidden_layers"]):
        here = f"model.layers.{layer}"
        yield [
            (f"{here}.input_layernorm.weight", ones),
            (f"{here}.self_attn.q_proj.weight", random(embed, embed)),
            (f"{here}.self_attn.k_proj.weight", random(kv, embed)),
            (f"{here}.self_attn.v_proj.weight", random(kv, embed)),
            (f"{here}.self_attn.o_proj.weight", random(embed, embed)),
            (f"{here}.post_attention_layernorm.weight", ones),
            (f"{here}.mlp.gate_proj.weight", random(mlp, embed)),
            (f"{here}.mlp.up_proj.weight", random(mlp, embed)),
            (f"{here}.mlp.down_proj.weight", random(embed, mlp)),
        ]
    vocab = config["vocab_size"]
    yield [("model.embed_tokens.weight", random(vocab, embed))]
    yield [("model.norm.weight", ones), ("lm_head.weight", random(vocab, embed))]
