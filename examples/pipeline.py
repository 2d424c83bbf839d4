"""Decodes by hand with functions of the core: no server, no engine, no thread."""

import sys
from collections.abc import Iterator
from itertools import islice

import jax
import jax.numpy as jnp

from jaxserver import SamplingParams
from jaxserver.adapters.checkpoints.locate import locate, open_checkpoint
from jaxserver.adapters.tokenizers.gguf import from_gguf
from jaxserver.core.config import MAX_CALL_TOKENS
from jaxserver.core.loading import load_params, read_config
from jaxserver.core.sampling import choose
from jaxserver.core.sampling_arrays import History, SamplingArrays, sampling_row
from jaxserver.core.sharding import make_mesh
from jaxserver.core.transformer import transformer_fns
from jaxserver.ports.model import ModelFns, Params, TokenBatch

SAMPLING = sampling_row(SamplingParams(temperature=0.7, top_k=50), seed=7)


def decode(
    fns: ModelFns, params: Params, prompt: list[int], sampling: SamplingArrays
) -> Iterator[int]:
    """Draws token after token, for as long as somebody asks for the next one."""
    extend, pick = jax.jit(fns.extend, donate_argnums=1), jax.jit(choose)
    cache, tokens, held = fns.init_cache(1), list(prompt), 0
    while len(tokens) < fns.max_len:
        new = jnp.array([tokens[held : held + MAX_CALL_TOKENS]])
        size = new.shape[1]
        where = jnp.array([held]), jnp.array([size]), None, jnp.array([[size - 1]])
        logits, cache = extend(params, cache, TokenBatch(new, *where))
        held += size
        if held == len(tokens):
            row = jnp.array(tokens + [0] * (fns.max_len - held))
            history = History(row, jnp.array(len(prompt)), jnp.array(held))
            tokens.append(int(pick(logits[0, 0], sampling, history).token))
            yield tokens[-1]


def main(prompt: str) -> None:
    checkpoint = open_checkpoint(locate("smollm2-135m-instruct", lambda *_: None))
    config, tokenizer = read_config(checkpoint), from_gguf(checkpoint.config)
    mesh = make_mesh((1, 1, 1), ("dp", "fsdp", "mp"), jax.devices()[:1])
    params = load_params(config, checkpoint, mesh, ("float32",) * 2, lambda *_: None)
    fns, ids = transformer_fns(config, 512), tokenizer.encode(prompt)
    for token in islice(decode(fns, params, ids, SAMPLING), 32):
        if token in tokenizer.eos_ids:
            break
        print(tokenizer.decode([token]), end="", flush=True)
    print()


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "Once upon a time")
