import asyncio
from pathlib import Path

import pytest

from benchmarks import overhead
from benchmarks.random_model import write_random_model
from jaxserver.adapters.checkpoints.locate import open_checkpoint
from jaxserver.core.loading import check_shapes, read_config
from tests.fakes import ScriptedGenerator
from tests.unit.benchmarks.serving import serving


def test_a_stream_is_counted_in_tokens_and_events() -> None:
    with serving(ScriptedGenerator("a", "b", "c")) as url:
        heard = asyncio.run(overhead.listen(url, new_tokens=3, seed=7))
    assert (heard.tokens, heard.events) == (3, 4)


def test_a_server_that_refuses_is_an_error() -> None:
    with serving(ScriptedGenerator("a")) as url, pytest.raises(SystemExit):
        asyncio.run(overhead.listen(url, new_tokens=-1, seed=0))


def test_the_smallest_model_is_one(tmp_path: Path) -> None:
    write_random_model(tmp_path, overhead.SMALLEST)
    checkpoint = open_checkpoint(tmp_path)
    config = read_config(checkpoint)
    check_shapes(config, checkpoint)
    assert (config.num_layers, config.vocab_size) == (1, 256)
