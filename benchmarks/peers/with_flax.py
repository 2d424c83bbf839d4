"""transformers' `generate` on Flax; the argument is `shipped` or `jitted`.

Weights are random: how long a token takes does not depend on them.
"""

import functools
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from transformers import FlaxLlamaForCausalLM, LlamaConfig

from benchmarks.peers.answering import Generate, answer


def make(said: Mapping[str, Any]) -> Generate:
    sizes = said["config"] | {"max_position_embeddings": 512}
    model = FlaxLlamaForCausalLM(LlamaConfig(**sizes))

    def run(params: Any, ids: Any, new_tokens: int) -> Any:
        return model.generate(
            ids,
            params=params,
            do_sample=False,
            max_new_tokens=new_tokens,
            pad_token_id=0,
            eos_token_id=sizes["vocab_size"],  # never comes
        ).sequences

    if sys.argv[1] == "jitted":
        run = functools.partial(jax.jit, static_argnums=2)(run)

    def generate(prompts: Sequence[Sequence[int]], new_tokens: int) -> Any:
        ids = jnp.asarray(prompts, jnp.int32)
        made = jax.block_until_ready(run(model.params, ids, new_tokens))
        assert made.shape == (len(ids), ids.shape[1] + new_tokens)
        return made

    return generate


answer(make)
