import asyncio
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from benchmarks import overhead, serve_free
from benchmarks.random_model import write_random_model
from jaxserver.adapters.checkpoints.locate import open_checkpoint
from jaxserver.core.compute import ON_CPU
from jaxserver.core.loading import check_shapes, read_config
from jaxserver.core.params import init_params
from jaxserver.core.transformer import transformer_fns
from jaxserver.ports.model import TokenBatch
from tests.fakes import ScriptedGenerator
from tests.tiny import TINY_BYTES, one_device
from tests.unit.benchmarks.serving import serving

PARAMS = init_params(TINY_BYTES, seed=0)


def test_a_stream_is_counted_in_tokens_and_events() -> None:
    with serving(ScriptedGenerator("a", "b", "c")) as url:
        heard = asyncio.run(overhead.listen(url, new_tokens=3, nth=7))
    assert (heard.tokens, heard.events) == (3, 4)


def test_a_server_that_refuses_is_an_error() -> None:
    with serving(ScriptedGenerator("a")) as url, pytest.raises(SystemExit):
        asyncio.run(overhead.listen(url, new_tokens=-1, nth=0))


def test_a_model_that_costs_nothing_says_letters_in_turn() -> None:
    made = (TINY_BYTES, 128, None, one_device(), "float32", ON_CPU)
    fns = serve_free.free_fns(*made)
    batch = TokenBatch(
        tokens=jnp.zeros((2, 3), jnp.int32),
        start=jnp.array([0, 25], jnp.int32),
        length=jnp.array([3, 3], jnp.int32),
        page_table=None,
        logits_at=jnp.array([[0, 2], [1, 2]], jnp.int32),
    )
    cache: Any = fns.init_cache(2)
    true = jax.eval_shape(transformer_fns(*made).extend, PARAMS, cache, batch)
    logits, after = fns.extend(PARAMS, cache, batch)
    assert after is cache
    assert (logits.shape, logits.dtype) == (true[0].shape, true[0].dtype)
    assert jnp.argmax(logits, -1).tolist() == [[64, 66], [64, 65]]


def test_the_smallest_model_is_one(tmp_path: Path) -> None:
    write_random_model(tmp_path, overhead.SMALLEST)
    checkpoint = open_checkpoint(tmp_path)
    config = read_config(checkpoint)
    check_shapes(config, checkpoint)
    assert (config.num_layers, config.vocab_size) == (1, 256)
