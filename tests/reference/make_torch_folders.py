"""Writes tests/reference/torch_folders: small random models as PyTorch saves them.

Each with the logits that PyTorch computes. Needs `torch` (2.13.0 was used) and
`transformers<5` (4.57.6 was used), which the tests do not:

    python tests/reference/make_torch_folders.py
"""

import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import (
    BertConfig,
    BertLMHeadModel,
    GPT2Config,
    GPT2LMHeadModel,
    MistralConfig,
    MistralForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

FOLDER = Path(__file__).parent / "torch_folders"
ENDS = dict(bos_token_id=1, eos_token_id=2)
MODELS: dict[str, Any] = {
    "gpt2_sharded": GPT2LMHeadModel(
        GPT2Config(
            vocab_size=64, n_positions=32, n_embd=16, n_layer=1, n_head=2, **ENDS
        )
    ),
    "mistral_tied": MistralForCausalLM(
        MistralConfig(
            vocab_size=64,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=1,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=32,
            sliding_window=5,
            tie_word_embeddings=True,
            **ENDS,
        )
    ),
    "bert_tied": BertLMHeadModel(
        BertConfig(
            vocab_size=64,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=24,
            max_position_embeddings=32,
            is_decoder=True,
            **ENDS,
        )
    ),
    "t5_untied": T5ForConditionalGeneration(
        T5Config(
            vocab_size=64,
            d_model=16,
            d_kv=8,
            d_ff=24,
            num_layers=1,
            num_heads=2,
            tie_word_embeddings=False,
            decoder_start_token_id=0,
            pad_token_id=0,
            eos_token_id=1,
        )
    ),
}


def write(name: str, model: Any) -> None:
    with torch.no_grad():
        for label, weight in model.named_parameters():
            spread = torch.randn_like(weight) * 0.25
            weight.copy_(
                1 + spread if "norm" in label.lower() and "weight" in label else spread
            )
    folder = FOLDER / name
    limit = "12KB" if name.endswith("sharded") else "5GB"
    model.eval().save_pretrained(folder, max_shard_size=limit)
    token_ids = torch.randint(3, 64, (1, 12))
    inputs = {"input_ids": token_ids}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = torch.randint(3, 64, (1, 5))
    with torch.no_grad():
        answer = {"logits": model(**inputs).logits[0].contiguous()}
    answer |= {key: value.to(torch.int32) for key, value in inputs.items()}
    save_file(answer, folder / "answer.safetensors")
    for file in folder.glob("*.safetensors"):
        file.chmod(0o644)


def main() -> None:
    torch.manual_seed(21)
    shutil.rmtree(FOLDER, ignore_errors=True)
    for name, model in MODELS.items():
        write(name, model)


if __name__ == "__main__":
    main()
