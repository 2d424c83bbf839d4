"""Answers that are saved, resumed by another engine, and forked."""

import dataclasses
import itertools
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from jaxserver.adapters.engine.going_on import resume
from jaxserver.adapters.engine.saved import read
from jaxserver.adapters.engine.text import TextEngine
from jaxserver.core.config import EngineConfig
from jaxserver.ports.errors import BrokenCheckpoint, EngineFailed, InvalidRequest
from jaxserver.ports.types import Chunk, FinishReason, GenerationRequest
from tests import engines
from tests.unit.adapters.engine.answers import LONG, request

# The hook that checks types draws random numbers, on the engine's thread meanwhile.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module")

LETTERS = dict.fromkeys(range(97, 123), 50.0)
ASKED = request("Tell me of a sea", logprobs=3, seed=7, logit_bias=LETTERS)
GRID = dataclasses.replace(engines.NARROW, prefix_cache=False)


@pytest.fixture(scope="module")
def engine() -> Iterator[TextEngine]:
    with engines.running(engines.Parts(sizes=engines.PAIR)) as running:
        yield running


@pytest.fixture(scope="module")
def other() -> Iterator[TextEngine]:
    """Has served nothing of what the first one has."""
    with engines.running(engines.Parts(sizes=engines.PAIR)) as running:
        yield running


def tokens(chunks: list[Chunk]) -> list[Any]:
    """What chunks bring, whatever pieces it comes in."""
    entries = [entry for chunk in chunks for entry in chunk.logprobs or ()]
    ids = [token for chunk in chunks for token in chunk.token_ids]
    return [(ids, entries), "".join(c.text for c in chunks), chunks[-1].finish_reason]


@pytest.mark.parametrize("num_read", [0, 1, 3])
def test_an_answer_goes_on_elsewhere_as_it_would_have(
    engine: TextEngine, other: TextEngine, tmp_path: Path, num_read: int
) -> None:
    stream = engine.generate(ASKED)
    begun = list(itertools.islice(stream, num_read))
    stream.save(tmp_path / "it")
    rest = list(stream)
    resumed = list(resume(other, tmp_path / "it", None))

    assert tokens(resumed) == tokens(rest)
    assert resumed[-1].usage == rest[-1].usage
    assert resumed[-1].seed == 7
    drawn = sum(len(chunk.token_ids) for chunk in begun)
    assert drawn + len(tokens(resumed)[0][0]) == 60


def test_what_the_cache_held_is_not_run_again(
    engine: TextEngine, tmp_path: Path
) -> None:
    asked = request(tuple(range(200)), seed=3)
    stream = engine.generate(asked)
    first, second = next(stream), next(stream)
    stream.save(tmp_path / "it")
    drawn = len(first.token_ids) + len(second.token_ids)
    assert read(tmp_path / "it").kept.length == 200 + drawn - 1
    with engines.running() as fresh:
        resumed = list(resume(fresh, tmp_path / "it", None))
    assert tokens(resumed) == tokens(list(stream))
    assert resumed[-1].usage.cached_tokens == 200 + drawn - 1


def test_while_an_answer_is_saved_others_may_leave(tmp_path: Path) -> None:
    is_taking, may_end = threading.Event(), threading.Event()

    def stand() -> None:
        is_taking.set()
        may_end.wait()

    def prepare(device: engines.HookedDevice) -> None:
        device.before_take = stand

    with engines.running(engines.Parts(prepare=prepare)) as engine:
        stream, other = engine.generate(LONG), engine.generate(LONG)
        next(stream)
        saving = threading.Thread(target=stream.save, args=(tmp_path / "it",))
        saving.start()
        assert is_taking.wait(10)
        other.cancel()
        assert list(other)[-1].finish_reason is FinishReason.CANCELLED
        may_end.set()
        saving.join()
    assert read(tmp_path / "it").kept.length > 0


def test_without_a_prefix_cache_all_is_run_again(
    engine: TextEngine, tmp_path: Path
) -> None:
    stream = engine.generate(ASKED)
    next(stream)
    stream.save(tmp_path / "it")
    parts = engines.Parts(sizes=GRID, executables=engines.compiled(engines.NARROW))
    with engines.running(parts) as fresh:
        resumed = list(resume(fresh, tmp_path / "it", None))
    assert tokens(resumed) == tokens(list(stream))
    assert resumed[-1].usage.cached_tokens == 0


def test_a_resumed_answer_can_be_saved_again(
    engine: TextEngine, other: TextEngine, tmp_path: Path
) -> None:
    expected = list(engine.generate(ASKED))
    stream = engine.generate(ASKED)
    seen = [next(stream)]
    stream.save(tmp_path / "one")
    again = resume(other, tmp_path / "one", None)
    seen.append(next(again))
    again.save(tmp_path / "two")
    last = list(resume(engine, tmp_path / "two", None))
    assert tokens([*seen, *last]) == tokens(expected)


def test_a_finished_answer_may_become_longer(
    engine: TextEngine, other: TextEngine, tmp_path: Path
) -> None:
    longer = list(engine.generate(ASKED))
    short = dataclasses.replace(
        ASKED, sampling=dataclasses.replace(ASKED.sampling, max_new_tokens=20)
    )
    stream = engine.generate(short)
    begun = list(stream)
    stream.save(tmp_path / "it")
    at_once = list(resume(other, tmp_path / "it", None))
    assert tokens(at_once) == [([], []), "", FinishReason.LENGTH]
    rest = list(resume(other, tmp_path / "it", 60))
    assert tokens([*begun, *rest]) == tokens(longer)


@pytest.mark.parametrize("more", [{"stop": ("e",)}, {"stop_token_ids": (101,)}])
def test_an_answer_that_has_ended_stays_ended(
    engine: TextEngine, other: TextEngine, tmp_path: Path, more: dict[str, Any]
) -> None:
    ended = dataclasses.replace(
        ASKED, sampling=dataclasses.replace(ASKED.sampling, logprobs=None, **more)
    )
    stream = engine.generate(ended)
    assert list(stream)[-1].finish_reason is FinishReason.STOP
    stream.save(tmp_path / "it")
    (only,) = resume(other, tmp_path / "it", 300)
    assert (only.text, only.token_ids) == ("", ())
    assert only.finish_reason is FinishReason.STOP


def test_forks_go_on_each_in_its_own_way(engine: TextEngine) -> None:
    stream = engine.generate(ASKED)
    begun = [next(stream), next(stream)]
    forks = stream.fork(3)
    answers = [tokens(list(fork))[0][0] for fork in forks]
    assert tokens([*begun, *stream]) == tokens(list(engine.generate(ASKED)))
    assert len({tuple(answer) for answer in answers}) == 3
    again = engine.generate(ASKED)
    next(again), next(again)
    assert [tokens(list(fork))[0][0] for fork in again.fork(3)] == answers
    again.cancel()


def test_forks_share_what_was_made(engine: TextEngine) -> None:
    stream = engine.generate(request(tuple(range(100, 250)), seed=5))
    drawn = len(next(stream).token_ids)
    (fork,) = stream.fork(1)
    assert list(fork)[-1].usage.cached_tokens >= 150 + drawn - 1
    stream.cancel()


@pytest.mark.parametrize("count", [0, 128])
def test_there_are_so_many_choices(engine: TextEngine, count: int) -> None:
    with (
        engine.generate(ASKED) as stream,
        pytest.raises(InvalidRequest, match="from 1 to 127"),
    ):
        stream.fork(count)


def test_with_other_weights_it_does_not_go_on(
    engine: TextEngine, tmp_path: Path
) -> None:
    stream = engine.generate(ASKED)
    next(stream)
    stream.save(tmp_path / "it")
    stream.cancel()
    other = dataclasses.replace(engine.identity, weights="others")

    class Elsewhere:
        loop, identity, go_on = engine.loop, other, engine.go_on

    with pytest.raises(InvalidRequest, match="weights"):
        resume(Elsewhere(), tmp_path / "it", None)


def test_with_another_configuration_it_goes_on_from_its_tokens(
    engine: TextEngine, tmp_path: Path
) -> None:
    stream = engine.generate(ASKED)
    next(stream)
    stream.save(tmp_path / "it")
    other = dataclasses.replace(engine.identity, config={"slots": 99})
    with engines.running() as fresh:

        class Elsewhere:
            loop, identity, go_on = fresh.loop, other, fresh.go_on

        resumed = list(resume(Elsewhere(), tmp_path / "it", None))
    assert tokens(resumed) == tokens(list(stream))
    assert resumed[-1].usage.cached_tokens == 0


def saved_with(
    engine: TextEngine, path: Path, **changes: Any
) -> tuple[dict[str, Any], dict[str, str]]:
    """Writes a file in which some of the header is other than it was."""
    stream = engine.generate(ASKED)
    next(stream)
    stream.save(path)
    stream.cancel()
    with safe_open(path, "numpy") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = {**file.metadata(), **changes}
    save_file(tensors, path, metadata)
    return tensors, metadata


@pytest.mark.parametrize(
    "changes",
    [
        {"receipt": "{}"},
        {"receipt": "["},
        {"length": "-1"},
        {"length": json.dumps("x")},
        {"length": "10000"},
        {"length": "3"},
        {"pages": "7"},
        {"pages": "1000000000000", "leaves": "0"},
        {"leaves": "1"},
        {"format": "1"},
        {"is_finished": "0"},
    ],
)
def test_a_file_with_a_wrong_header_is_refused(
    engine: TextEngine, tmp_path: Path, changes: dict[str, str]
) -> None:
    saved_with(engine, tmp_path / "it", **changes)
    with pytest.raises(BrokenCheckpoint, match="it"):
        resume(engine, tmp_path / "it", None)
    assert engine.is_alive()


def test_pages_of_another_shape_are_refused(engine: TextEngine, tmp_path: Path) -> None:
    tensors, metadata = saved_with(engine, tmp_path / "it")
    spoiled = {name: np.zeros((1, 2, 3), np.float32) for name in tensors}
    save_file(spoiled, tmp_path / "it", metadata)
    with pytest.raises(BrokenCheckpoint, match="pages of this model's cache"):
        resume(engine, tmp_path / "it", None)


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff" * 200])
def test_what_is_no_such_file_is_refused(
    engine: TextEngine, tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "it").write_bytes(content)
    with pytest.raises(BrokenCheckpoint):
        resume(engine, tmp_path / "it", None)
    with pytest.raises(BrokenCheckpoint):
        resume(engine, tmp_path / "not there", None)


def test_what_was_refused_cannot_be_saved(engine: TextEngine, tmp_path: Path) -> None:
    stream = engine.generate(GenerationRequest(prompt=(999,)))
    with pytest.raises(EngineFailed, match="not taken"):
        stream.save(tmp_path / "it")
    assert not list(tmp_path.iterdir())


def test_an_engine_of_pages_gives_and_takes_them(tmp_path: Path) -> None:
    sizes = EngineConfig(
        slots=4, max_len=128, max_stream_tokens=8, tokens_per_page=16, pages=40
    )
    parts = engines.of_pages(sizes)
    asked = request(tuple(range(60)), seed=4, max_new_tokens=40)
    with engines.running(parts) as engine, engines.running(parts) as other:
        stream = engine.generate(asked)
        next(stream)
        stream.save(tmp_path / "it")
        resumed = list(resume(other, tmp_path / "it", None))
        assert tokens(resumed) == tokens(list(stream))
        assert resumed[-1].usage.cached_tokens >= 60
