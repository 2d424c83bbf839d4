"""transformers' `generate` on PyTorch; the argument is float32 or bfloat16."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from benchmarks.peers.answering import Generate, answer


def make(said: Mapping[str, Any]) -> Generate:
    file = Path(said["file"])
    torch.set_num_threads(said["threads"])
    model = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=getattr(torch, sys.argv[1])
    )

    def generate(prompts: Sequence[Sequence[int]], new_tokens: int) -> Any:
        ids = torch.tensor(prompts)
        made = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            min_new_tokens=new_tokens,
            max_new_tokens=new_tokens,
            pad_token_id=0,
        )
        assert made.shape == (len(ids), ids.shape[1] + new_tokens)
        return made

    return generate


answer(make)
