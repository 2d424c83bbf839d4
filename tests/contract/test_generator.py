"""What every implementation of `ports.generator` promises its readers."""

import asyncio
import contextlib
import dataclasses
import gc
import threading
from collections.abc import Iterator, Sequence

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
def scripted() -> Iterator[ScriptedGenerator]:
    yield ScriptedGenerator(*pieces(9), seed=SEED)


@contextlib.contextmanager
def engine() -> Iterator[TextEngine]:
    with engines.running() as running:
        yield running


@contextlib.contextmanager
def held_script() -> Iterator[ScriptedGenerator]:
    with scripted() as generator:

        def is_due(number: int) -> bool:
            is_cancelled = any(s.cancelled.is_set() for s in generator.streams)
            return number == 0 or is_cancelled

        generator.is_due = is_due
        yield generator


@contextlib.contextmanager
def held_engine() -> Iterator[TextEngine]:
    with engines.gated() as (held, gate), pytest.MonkeyPatch.context() as patch:
        cancel = held.loop.cancel

        def cancel_and_go_on(request_id: int) -> None:
            cancel(request_id)
            gate.open()

        patch.setattr(held.loop, "cancel", cancel_and_go_on)
        gate.allow(4)
        yield held


@pytest.fixture(params=[scripted, engine])
def generator(request: pytest.FixtureRequest) -> Iterator[Generator]:
    """Answers as fast as it can."""
    with request.param() as quick:
        yield quick


@pytest.fixture(params=[held_script, held_engine])
def held(request: pytest.FixtureRequest) -> Iterator[Generator]:
    """Begins its answers, and goes on when one of them is cancelled."""
    with request.param() as patient:
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
    held: Generator,
) -> None:
    stream = held.generate(LONG)
    stream.cancel()
    chunks = list(stream)

    assert is_cancelled(chunks)
    assert all(chunk.finish_reason is None for chunk in chunks[:-1])


def test_cancelling_between_chunks_ends_the_answer_with_a_last_chunk(
    held: Generator,
) -> None:
    stream = held.generate(LONG)
    first = next(stream)
    stream.cancel()
    rest = list(stream)

    assert first.finish_reason is None
    assert is_cancelled(rest)
    assert rest[-1].usage.completion_tokens >= len(first.token_ids)
    assert rest[-1].seed is not None


@pytest.mark.parametrize("is_async", [False, True], ids=["for", "async for"])
def test_a_reader_that_waits_hears_of_a_cancel_from_another_thread(
    held: Generator, is_async: bool
) -> None:
    stream, has_begun = held.generate(LONG), threading.Event()

    def cancel() -> None:
        assert has_begun.wait(20)
        stream.cancel()

    def read_on() -> list[Chunk]:
        chunks = []
        for chunk in stream:
            chunks.append(chunk)
            has_begun.set()
        return chunks

    async def read_on_in_a_loop() -> list[Chunk]:
        chunks = []
        async for chunk in stream:
            chunks.append(chunk)
            has_begun.set()
        return chunks

    thread = threading.Thread(target=cancel)
    thread.start()
    chunks = asyncio.run(read_on_in_a_loop()) if is_async else read_on()
    thread.join()

    assert is_cancelled(chunks)


def test_cancelling_any_number_of_times_from_many_threads_is_one_cancel(
    held: Generator,
) -> None:
    stream = held.generate(LONG)
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


def test_leaving_the_context_cancels(held: Generator) -> None:
    with held.generate(LONG) as stream:
        next(stream)

    assert is_cancelled(list(stream))


def test_leaving_the_context_of_a_finished_answer_leaves_it_alone(
    generator: Generator,
) -> None:
    with generator.generate(SHORT) as stream:
        chunks = list(stream)

    assert not is_cancelled(chunks)


def test_an_error_inside_the_context_cancels_and_goes_on(held: Generator) -> None:
    with pytest.raises(KeyError), held.generate(LONG) as stream:
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
    held: Generator,
) -> None:
    left = held.generate(LONG)
    loop, has_begun = asyncio.new_event_loop(), asyncio.Event()

    async def read_on() -> None:
        async for _ in left:
            has_begun.set()

    waiting = loop.create_task(read_on())
    loop.run_until_complete(has_begun.wait())
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        loop.run_until_complete(waiting)
    loop.close()
    other = held.generate(SHORT)
    left.cancel()

    assert not is_cancelled(list(other))
    assert is_cancelled(list(left))


@pytest.fixture
def real() -> Iterator[Generator]:
    with engine() as running:
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
