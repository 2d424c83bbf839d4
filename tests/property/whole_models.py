"""Small models that can be served as they are, as files by name, to be spoiled."""

import contextlib
import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors.numpy import load_file
from transformers import GPT2TokenizerFast

from tests.contract import tiny_tokenizers as tiny
from tests.property.spoiling import Content, Files, Said
from tests.unit.adapters.checkpoints.files import write_folder
from tests.unit.tiny_folder import SETTINGS, write_model

_GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "model.layers.0.self_attn.q_proj": "blk.0.attn_q",
    "model.layers.0.self_attn.k_proj": "blk.0.attn_k",
    "model.layers.0.self_attn.v_proj": "blk.0.attn_v",
    "model.layers.0.self_attn.o_proj": "blk.0.attn_output",
    "model.layers.0.mlp.gate_proj": "blk.0.ffn_gate",
    "model.layers.0.mlp.up_proj": "blk.0.ffn_up",
    "model.layers.0.mlp.down_proj": "blk.0.ffn_down",
    "model.layers.0.input_layernorm": "blk.0.attn_norm",
    "model.layers.0.post_attention_layernorm": "blk.0.ffn_norm",
}


def files_of(write: Callable[[Path], object]) -> Files:
    """What a function writes into a folder."""
    with tempfile.TemporaryDirectory() as name:
        write(Path(name))
        paths = sorted(Path(name).iterdir())
        return Files({path.name: Content(path.read_bytes()) for path in paths})


def _write_shards(folder: Path) -> None:
    write_model(folder)
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    halves = [{name: weights[name] for name in names[start::2]} for start in (0, 1)]
    write_folder(folder, *halves)
    (folder / "config.json").write_text(json.dumps(SETTINGS))


def metadata() -> Said:
    """What a GGUF file says besides its tensors."""
    config: Mapping[str, Any] = SETTINGS
    heads, head_dim = config["num_attention_heads"], config["head_dim"]
    said = {
        "llama.vocab_size": config["vocab_size"],
        "llama.block_count": config["num_hidden_layers"],
        "llama.embedding_length": config["hidden_size"],
        "llama.feed_forward_length": config["intermediate_size"],
        "llama.attention.head_count": heads,
        "llama.attention.head_count_kv": config["num_key_value_heads"],
        "llama.attention.key_length": head_dim,
        "llama.attention.value_length": head_dim,
        "llama.rope.dimension_count": head_dim,
        "llama.context_length": config["max_position_embeddings"],
        "llama.attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        "llama.rope.freq_base": config["rope_theta"],
        "tokenizer.chat_template": tiny.CHATML,
        **tiny.byte_level_metadata(tiny.single_digits(), "smollm"),
    }
    return Said(said)


def gguf_bytes(said: Mapping[str, Any]) -> Content:
    """A file with these metadata, each in the type that its value has."""
    whole = FOLDER["model.safetensors"]
    with tempfile.TemporaryDirectory() as name:
        stored = Path(name) / "model.safetensors"
        stored.write_bytes(whole)
        with contextlib.closing(
            gguf.GGUFWriter(Path(name) / "m.gguf", "llama")
        ) as writer:
            for key, value in said.items():
                writer.add_key_value(key, value, _type_of(value))
            for tensor, values in load_file(stored).items():
                writer.add_tensor(
                    f"{_GGUF_NAMES[tensor.removesuffix('.weight')]}.weight",
                    values.astype(np.float32),
                )
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        return Content((Path(name) / "m.gguf").read_bytes())


def _type_of(value: Any) -> gguf.GGUFValueType:
    if isinstance(value, int) and not isinstance(value, bool):
        return gguf.GGUFValueType.INT64 if value < 0 else gguf.GGUFValueType.UINT64
    return gguf.GGUFValueType.get_type(value)


def _save_gpt2(folder: Path) -> None:
    tiny.single_digits().model.save(str(folder))
    files = folder / "vocab.json", folder / "merges.txt"
    assert GPT2TokenizerFast(*map(str, files)).vocab_size
    settings = {"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|endoftext|>"}
    tiny.write_json(folder, tokenizer_config=settings)


def _save_bert(folder: Path) -> None:
    tiny.word_piece().model.save(str(folder))
    tiny.write_json(folder, tokenizer_config={"tokenizer_class": "BertTokenizer"})


FOLDER = files_of(write_model)
SHARDS = files_of(_write_shards)
METADATA = metadata()
GGUF = gguf_bytes(METADATA)


def _with_tokenizer(write: Callable[[Path], object]) -> Files:
    """The model in the folder above, with a tokenizer of another kind."""
    model = {name: FOLDER[name] for name in FOLDER if "token" not in name}
    return Files({**model, **files_of(write)})


TOKENIZERS: Mapping[str, Files] = {
    "sentencepiece": _with_tokenizer(tiny.save_sentencepiece),
    "gpt2": _with_tokenizer(_save_gpt2),
    "bert": _with_tokenizer(_save_bert),
    "unigram": _with_tokenizer(lambda folder: tiny.save(tiny.unigram(), folder)),
    "word pieces": _with_tokenizer(lambda folder: tiny.save(tiny.word_piece(), folder)),
}
"""Folders whose tokenizers are of other kinds."""
