"""Tiny checkpoints, written with the libraries that define their formats."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors.numpy import save_file

GGUF_TENSORS: Mapping[str, np.ndarray] = {
    "token_embd.weight": np.arange(12, dtype=np.float32).reshape(3, 4),
    "output_norm.weight": np.array([1, 2, 4, 8], np.float16),
}


def write_gguf(
    path: Path,
    tensors: Mapping[str, np.ndarray] = GGUF_TENSORS,
    block_type: gguf.GGMLQuantizationType | None = None,
) -> Path:
    """Writes a model with every kind of metadata; `block_type` is that of raw bytes."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint32("llama.block_count", 2)
    writer.add_float32("llama.rope.freq_base", 0.5)
    writer.add_bool("tokenizer.ggml.add_bos_token", True)
    writer.add_uint64("test.uint64", 2**63)
    writer.add_int64("test.int64", -(2**62))
    writer.add_float64("test.float64", 0.1)
    writer.add_int8("test.int8", -3)
    writer.add_array("tokenizer.ggml.tokens", ["<s>", "Ġé", ""])
    writer.add_array("tokenizer.ggml.token_type", [3, 1, 1])
    writer.add_array("tokenizer.ggml.scores", [0.5, -1.5, 2.0])
    writer.add_string("tokenizer.chat_template", "{{ messages }}")
    for name, values in tensors.items():
        writer.add_tensor(name, values, raw_dtype=block_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_folder(folder: Path, *shards: Mapping[str, np.ndarray]) -> Path:
    """Writes one file, or with more than one mapping as many shards and an index."""
    folder.mkdir(exist_ok=True)
    write_json(folder / "config.json", {"model_type": "llama"})
    if len(shards) == 1:
        save_file(dict(shards[0]), folder / "model.safetensors")
        return folder
    weight_map: dict[str, str] = {}
    for number, tensors in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        save_file(dict(tensors), folder / file)
        weight_map |= dict.fromkeys(tensors, file)
    write_index(folder, weight_map)
    return folder


def write_index(folder: Path, weight_map: object) -> Path:
    return write_json(
        folder / "model.safetensors.index.json", {"weight_map": weight_map}
    )


def write_json(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path
