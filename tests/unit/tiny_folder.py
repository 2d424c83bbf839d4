"""A folder with the smallest of models, its tokenizer and its template."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from tests.contract.tiny_tokenizers import save, single_digits

TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}!"
VOCAB = single_digits().get_vocab_size()
SETTINGS = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SHAPES = {
    "model.embed_tokens": (VOCAB, 32),
    "model.layers.0.self_attn.q_proj": (32, 32),
    "model.layers.0.self_attn.k_proj": (16, 32),
    "model.layers.0.self_attn.v_proj": (16, 32),
    "model.layers.0.self_attn.o_proj": (32, 32),
    "model.layers.0.mlp.gate_proj": (48, 32),
    "model.layers.0.mlp.up_proj": (48, 32),
    "model.layers.0.mlp.down_proj": (32, 48),
    "model.layers.0.input_layernorm": (32,),
    "model.layers.0.post_attention_layernorm": (32,),
    "model.norm": (32,),
}


def nobody(stage: str, done: int, total: int) -> None:
    """Does not listen to progress."""


def write_model(folder: Path) -> Path:
    tokenizer = {
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "chat_template": TEMPLATE,
    }
    save(single_digits(), folder, tokenizer_config=tokenizer)
    (folder / "config.json").write_text(json.dumps(SETTINGS), "utf-8")
    rng = np.random.default_rng(0)
    weights = {
        f"{name}.weight": rng.standard_normal(shape).astype(np.float32)
        for name, shape in SHAPES.items()
    }
    save_file(weights, folder / "model.safetensors")
    return folder
