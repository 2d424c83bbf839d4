"""Writes tests/reference/llama_variants: small random models and what they answer.

The other implementation is transformers' `LlamaForCausalLM`. Needs `torch` (2.13.0 was
used) and `transformers<5` (4.57.6 was used), which the tests do not:

    python tests/reference/make_llama_variants.py
"""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

FOLDER = Path(__file__).parent / "llama_variants"
PROMPT_LENGTH = 140
POSITIONS = [*range(3, PROMPT_LENGTH, 8), PROMPT_LENGTH - 1]
"""Some in each of the attention's blocks of 128, and the last."""
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 6.0,
    "low_freq_factor": 1.5,
    "high_freq_factor": 5.0,
    "original_max_position_embeddings": 48,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant:
    """What of a model is unlike the others; `stored` is the type in the file."""

    name: str
    stored: torch.dtype
    settings: dict[str, Any]


VARIANTS = (
    Variant(
        name="grouped_tied",
        stored=torch.float32,
        settings=dict(tie_word_embeddings=True, rope_theta=700.0),
    ),
    Variant(
        name="full_heads_untied",
        stored=torch.float16,
        settings=dict(num_key_value_heads=4, rope_theta=500_000.0, rms_norm_eps=1e-2),
    ),
    Variant(
        name="biases",
        stored=torch.bfloat16,
        settings=dict(
            attention_bias=True, mlp_bias=True, tie_word_embeddings=True, rope_theta=3e4
        ),
    ),
    Variant(
        name="wide_heads_linear",
        stored=torch.float16,
        settings=dict(
            head_dim=12,
            num_key_value_heads=1,
            attention_bias=True,
            rope_scaling={"rope_type": "linear", "factor": 3.0},
        ),
    ),
    Variant(
        name="llama3_scaled",
        stored=torch.float16,
        settings=dict(
            head_dim=16, mlp_bias=True, rope_theta=2000.0, rope_scaling=LLAMA3
        ),
    ),
)


def make_model(settings: dict[str, Any]) -> LlamaForCausalLM:
    """Random weights of every kind, biases and norms included, large enough to bite."""
    common = dict(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        rms_norm_eps=1e-4,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = LlamaForCausalLM(LlamaConfig(**{**common, **settings}))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            spread = torch.randn_like(weight) * 0.25
            weight.copy_(1 + spread if "norm" in name else spread)
    return model


def write(variant: Variant) -> None:
    folder = FOLDER / variant.name
    make_model(variant.settings).to(variant.stored).save_pretrained(folder)
    (folder / "generation_config.json").unlink()
    (folder / "model.safetensors").chmod(0o644)
    token_ids = torch.randint(0, 64, (1, PROMPT_LENGTH))
    # Loaded anew, so that the rotary frequencies are not rounded with the weights.
    model = LlamaForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        logits = model(token_ids).logits[0, POSITIONS]
    answer = dict(
        token_ids=token_ids[0].to(torch.int32),
        positions=torch.tensor(POSITIONS, dtype=torch.int32),
        logits=logits.contiguous(),
    )
    save_file(answer, folder / "answer.safetensors")
    (folder / "answer.safetensors").chmod(0o644)


def main() -> None:
    torch.manual_seed(20)
    shutil.rmtree(FOLDER, ignore_errors=True)
    for variant in VARIANTS:
        write(variant)


if __name__ == "__main__":
    main()
