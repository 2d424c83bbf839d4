"""`jaxserver` with a model function that costs nothing: it says letters in turn.

None of its steps are remembered, where they would be taken for those of the true model.
"""

import runpy
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    # This folder would be first on the path, and `http.py` the library's own `http`.
    sys.path[0] = str(Path(__file__).parents[1])

import jax.numpy as jnp

from jaxserver import backends, wiring
from jaxserver.core.transformer import transformer_fns
from jaxserver.ports.model import Cache, Hidden, ModelFns, Params, TokenBatch

FIRST_LETTER, NUM_LETTERS = 64, 26
"""Of the tokens that are bytes."""


def free_fns(*given: Any) -> ModelFns:
    fns = transformer_fns(*given)

    def run(params: Params, cache: Cache, batch: TokenBatch) -> tuple[Hidden, Cache]:
        return batch.start, cache

    def read(params: Params, hidden: Hidden, at: Any) -> Any:
        places = hidden[:, None] + at
        letters = FIRST_LETTER + places % NUM_LETTERS
        is_next = jnp.arange(fns.vocab_size) == letters[..., None]
        return is_next.astype(jnp.float32)

    return fns._replace(run=run, read=read)


if __name__ == "__main__":
    vars(backends)["transformer_fns"] = free_fns
    vars(wiring)["_remembered"] = lambda model: None
    runpy.run_module("jaxserver", run_name="__main__")
