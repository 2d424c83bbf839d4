"""What every implementation of `ports.generator` promises its readers."""

import asyncio
import contextlib
import dataclasses
import gc
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import pytest

from jaxserver.adapters.engine.text import TextEngine
from jaxserver.ports.errors import InvalidRequest, JaxServerError, PromptTooLong
from jaxserver.ports.generator import Generator, Stream
from jaxserver.ports.prompt import Rendered
from jaxserver.ports.types import (
    Chunk,
    FinishReason,
    GenerationRequest,
    SamplingParams,
)
from tests import engines
from tests.fakes import ScriptedGenerator
from tests.waiting import eventually

SEED = 5
LONG = GenerationRequest(
    prompt="a", sampling=SamplingParams(max_new_tokens=300, ignore_eos=True, seed=SEED)
)
SHORT = GenerationRequest(
    prompt="a", sampling=SamplingParams(max_new_tokens=30, ignore_eos=True, seed=SEED)
)


def pieces(count: int) -> list[str]:
    return [f"piece {i} " for i in range(count)]


@contextlib.contextmanager
def scripted(seconds: float) -> Iterator[Generator]:
    yield ScriptedGenerator(*pieces(9), chunk_seconds=seconds, seed=SEED)


@contextlib.contextmanager
def engine(seconds: float) -> Iterator[TextEngine]:
    def prepare(device: engines.HookedDevice) -> None:
        device.before_step = lambda kind: time.sleep(seconds)

    with engines.running(engines.Parts(prepare=prepare)) as running:
        yield running


Open = Callable[[float], contextlib.AbstractContextManager[Generator]]


@pytest.fixture(params=[scripted, engine], ids=["scripted", "engine"])
def opened(request: pytest.FixtureRequest) -> Open:
    implementation: Open = request.param
    return implementation


@pytest.fixture
def generator(opened: Open) -> Iterator[Generator]:
    """Answers as fast as it can."""
    with opened(0.0) as quick:
        yield quick


@pytest.fixture
def slow(opened: Open) -> Iterator[Generator]:
    """Takes its time for each chunk, so that there is something to cancel."""
    with opened(0.1) as patient:
        yield patient


async def read(stream: Stream) -> list[Chunk]:
    return [chunk async for chunk in stream]


def text_of(chunks: Sequence[Chunk]) -> str:
    return "".join(chunk.text for chunk in chunks)


def is_cancelled(chunks: Sequence[Chunk]) -> bool:
    return chunks[-1].finish_reason is FinishReason.CANCELLED


def test_only_the_last_chunk_has_a_finish_reason_and_a_seed(
    generator: Generator,
) -> None:
    *before, last = generator.generate(SHORT)

    assert before
    assert all(c.finish_reason is None and c.seed is None for c in before)
    assert last.finish_reason in {FinishReason.STOP, FinishReason.LENGTH}
    assert last.seed == SEED


def test_counts_grow_to_the_number_of_tokens(generator: Generator) -> None:
    chunks = list(generator.generate(SHORT))

    so_far = 0
    for chunk in chunks:
        so_far += len(chunk.token_ids)
        assert chunk.usage.completion_tokens == so_far
        assert chunk.usage.prompt_tokens == chunks[0].usage.prompt_tokens > 0


def test_no_chunk_before_the_last_is_empty(generator: Generator) -> None:
    *before, _ = generator.generate(SHORT)

    assert all(chunk.token_ids for chunk in before)


def test_log_probabilities_come_with_each_token_and_only_when_asked(
    generator: Generator,
) -> None:
    asking = dataclasses.replace(SHORT.sampling, logprobs=2)
    asked = generator.generate(dataclasses.replace(SHORT, sampling=asking))

    for chunk in asked:
        assert chunk.logprobs is not None
        assert [entry.token_id for entry in chunk.logprobs] == list(chunk.token_ids)
        assert all(len(entry.top) == 2 for entry in chunk.logprobs)
    assert all(chunk.logprobs is None for chunk in generator.generate(SHORT))


def test_for_and_async_for_give_the_same(generator: Generator) -> None:
    plain = list(generator.generate(SHORT))
    asynchronous = asyncio.run(read(generator.generate(SHORT)))

    assert text_of(plain) == text_of(asynchronous)
    assert [i for c in plain for i in c.token_ids] == [
        i for c in asynchronous for i in c.token_ids
    ]
    assert plain[-1].usage == asynchronous[-1].usage
    assert plain[-1].finish_reason is asynchronous[-1].finish_reason


def test_iteration_ends_after_the_last_chunk(generator: Generator) -> None:
    stream = generator.generate(SHORT)
    list(stream)

    assert list(stream) == []
    assert asyncio.run(read(stream)) == []


def test_reading_may_go_on_where_it_was_left(generator: Generator) -> None:
    stream = generator.generate(SHORT)
    first = next(stream)
    rest = asyncio.run(read(stream))

    assert text_of([first, *rest]) == text_of(list(generator.generate(SHORT)))


def test_an_answer_cancelled_before_it_is_read_is_one_last_chunk(
    slow: Generator,
) -> None:
    stream = slow.generate(LONG)
    stream.cancel()
    chunks = list(stream)

    assert is_cancelled(chunks)
    assert all(chunk.finish_reason is None for chunk in chunks[:-1])


def test_cancelling_between_chunks_ends_the_answer_with_a_last_chunk(
    slow: Generator,
) -> None:
    stream = slow.generate(LONG)
    first = next(stream)
    stream.cancel()
    rest = list(stream)

    assert first.finish_reason is None
    assert is_cancelled(rest)
    assert rest[-1].usage.completion_tokens >= len(first.token_ids)
    assert rest[-1].seed is not None


@pytest.mark.parametrize("is_async", [False, True], ids=["for", "async for"])
def test_a_reader_that_waits_hears_of_a_cancel_from_another_thread(
    slow: Generator, is_async: bool
) -> None:
    stream = slow.generate(LONG)
    timer = threading.Timer(0.05, stream.cancel)
    timer.start()
    chunks = asyncio.run(read(stream)) if is_async else list(stream)
    timer.join()

    assert is_cancelled(chunks)


def test_cancelling_any_number_of_times_from_many_threads_is_one_cancel(
    slow: Generator,
) -> None:
    stream = slow.generate(LONG)
    next(stream)
    threads = [threading.Thread(target=stream.cancel) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    chunks = list(stream)

    assert is_cancelled(chunks)
    assert sum(chunk.finish_reason is not None for chunk in chunks) == 1
    assert list(stream) == []


def test_cancelling_a_finished_answer_does_nothing(generator: Generator) -> None:
    stream = generator.generate(SHORT)
    chunks = list(stream)
    stream.cancel()

    assert not is_cancelled(chunks)
    assert list(stream) == []
    assert not is_cancelled(list(generator.generate(SHORT)))


def test_leaving_the_context_cancels(slow: Generator) -> None:
    with slow.generate(LONG) as stream:
        next(stream)

    assert is_cancelled(list(stream))


def test_leaving_the_context_of_a_finished_answer_leaves_it_alone(
    generator: Generator,
) -> None:
    with generator.generate(SHORT) as stream:
        chunks = list(stream)

    assert not is_cancelled(chunks)


def test_an_error_inside_the_context_cancels_and_goes_on(slow: Generator) -> None:
    with pytest.raises(KeyError), slow.generate(LONG) as stream:
        raise KeyError

    assert is_cancelled(list(stream))


def test_several_event_loops_read_at_once(generator: Generator) -> None:
    alone = text_of(list(generator.generate(SHORT)))
    texts: list[str] = []

    async def read_three() -> None:
        streams = [generator.generate(SHORT) for _ in range(3)]
        for chunks in await asyncio.gather(*map(read, streams)):
            texts.append(text_of(chunks))

    threads = [
        threading.Thread(target=asyncio.run, args=(read_three(),)) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert texts == [alone] * 12


def test_an_event_loop_that_closes_while_it_waits_hurts_nobody_else(
    slow: Generator,
) -> None:
    left = slow.generate(LONG)
    loop = asyncio.new_event_loop()
    waiting = loop.create_task(read(left))
    loop.run_until_complete(asyncio.sleep(0.01))
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        loop.run_until_complete(waiting)
    loop.close()
    other = slow.generate(SHORT)

    assert not is_cancelled(list(other))
    left.cancel()
    assert is_cancelled(list(left))


@pytest.fixture
def real() -> Iterator[Generator]:
    with engine(0.0) as running:
        yield running


WRONG = {
    "an id past the vocabulary": ("prompt", GenerationRequest(prompt=(1, 258))),
    "a negative id": ("prompt", GenerationRequest(prompt=(1, -1))),
    "no token": ("prompt", GenerationRequest(prompt=())),
    "no text": ("prompt", GenerationRequest(prompt=Rendered(""))),
    "an end id past the vocabulary": (
        "stop_token_ids",
        GenerationRequest(prompt="a", sampling=SamplingParams(stop_token_ids=(258,))),
    ),
    "a bias past the vocabulary": (
        "logit_bias",
        GenerationRequest(prompt="a", sampling=SamplingParams(logit_bias={258: 1.0})),
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_request_is_refused_to_its_reader_by_field(
    real: Generator, wrong: str
) -> None:
    field, request = WRONG[wrong]

    with pytest.raises(InvalidRequest) as refusal:
        list(real.generate(request))
    assert refusal.value.field == field
    with pytest.raises(InvalidRequest):
        asyncio.run(read(real.generate(request)))


def test_a_prompt_too_long_is_refused_with_its_length_and_the_room(
    real: Generator,
) -> None:
    request = GenerationRequest(prompt=(7,) * engines.MAX_LEN)

    with pytest.raises(PromptTooLong) as refusal:
        list(real.generate(request))

    assert (refusal.value.length, refusal.value.room) == (384, 383)


def test_the_longest_prompt_there_is_gets_one_token(real: Generator) -> None:
    prompt = (7,) * (engines.MAX_LEN - 1)
    *_, last = real.generate(GenerationRequest(prompt=prompt))

    assert last.usage.completion_tokens == 1


def test_iteration_ends_after_an_error(real: Generator) -> None:
    stream = real.generate(GenerationRequest(prompt=()))
    with pytest.raises(JaxServerError):
        next(stream)

    assert list(stream) == []


def test_a_stream_that_is_dropped_cancels() -> None:
    with engines.gated() as (held, gate):
        stream = held.generate(LONG)
        gate.allow(4)
        next(stream)
        del stream
        gc.collect()
        gate.open()

        assert eventually(lambda: held.loop.stats.slots_in_use == 0)
        assert held.loop.stats.dispatches <= 5  # of 40 that it would have taken
