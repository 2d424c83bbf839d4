import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxserver.adapters.engine.answer import Answer
from jaxserver.adapters.engine.requests import Logprobs, TokenEvent
from jaxserver.adapters.engine.stream import Channel
from jaxserver.ports.errors import EngineFailed
from jaxserver.ports.types import Chunk, FinishReason, SamplingParams
from tests.fakes import ByteTokenizer

END = ByteTokenizer.vocab_size - 1


class SpaceTokenizer(ByteTokenizer):
    """Writes a space before the first word, which decoding drops."""

    strips_leading_space = True


def answer(
    *stops: str, logprobs: int | None = None, tokenizer: ByteTokenizer | None = None
) -> Answer:
    return Answer(
        request_id=3,
        sampling=SamplingParams(stop=stops, logprobs=logprobs),
        seed=9,
        channel=Channel(),
        tokenizer=tokenizer or ByteTokenizer(),
        queued_seconds=100.0,
        prompt_tokens=2,
    )


def event(
    ids: Sequence[int],
    end: FinishReason | EngineFailed | None = None,
    logprobs: Logprobs | None = None,
) -> TokenEvent:
    return TokenEvent(request_id=3, token_ids=tuple(ids), end=end, logprobs=logprobs)


def feed(
    growing: Answer, *parts: Sequence[int], end: FinishReason = FinishReason.LENGTH
) -> list[Chunk]:
    """Gives an answer its tokens, part by part, until it has ended."""
    ends = [None] * (len(parts) - 1) + [end]
    chunks = []
    for part, why in zip(parts, ends, strict=True):
        item = growing.take_in(event(part, why), 101.0)
        assert isinstance(item, Chunk)
        chunks.append(item)
        if item.finish_reason is not None:
            break
    return chunks


def text_of(chunks: Sequence[Chunk]) -> str:
    return "".join(chunk.text for chunk in chunks)


def cut(ids: Sequence[int], cuts: set[int]) -> list[Sequence[int]]:
    """The ids in pieces, cut at the places that lie inside."""
    places = [0, *sorted(c for c in cuts if 0 < c < len(ids)), len(ids)]
    return [ids[a:b] for a, b in itertools.pairwise(places)]


CUTS = st.sets(st.integers(1, 40), max_size=6)


def test_a_character_waits_for_its_last_byte() -> None:
    first, second = "é".encode()

    assert [c.text for c in feed(answer(), [first], [second])] == ["", "é"]


def test_bytes_that_never_become_a_character_are_replaced_at_the_end() -> None:
    chunks = feed(answer(), b"a\xe2", b"\x82")

    assert [chunk.text for chunk in chunks] == ["a", "\ufffd"]


@given(ids=st.lists(st.integers(0, END), min_size=1, max_size=40), cuts=CUTS)
def test_the_text_is_the_decoded_ids_however_they_come(
    ids: list[int], cuts: set[int]
) -> None:
    chunks = feed(answer("\ue000\ue001"), *cut(ids, cuts))

    assert text_of(chunks) == ByteTokenizer().decode(ids)
    assert [i for chunk in chunks for i in chunk.token_ids] == ids
    assert chunks[-1].usage.completion_tokens == len(ids)


@given(before=st.text("ST x", max_size=12), cuts=CUTS)
def test_what_follows_a_stop_string_is_neither_sent_nor_counted(
    before: str, cuts: set[int]
) -> None:
    ids = f"{before}STOP and on".encode()
    chunks = feed(answer("STOP"), *cut(ids, cuts))

    assert text_of(chunks) == before
    assert chunks[-1].finish_reason is FinishReason.STOP
    sent = bytes(i for chunk in chunks for i in chunk.token_ids)
    assert sent == f"{before}STOP".encode()
    assert chunks[-1].usage.completion_tokens == len(sent)


@given(cuts=CUTS)
def test_a_stop_string_that_is_not_completed_is_given_out_in_the_end(
    cuts: set[int],
) -> None:
    chunks = feed(answer("STOP", "TOPS"), *cut(b"one STO", cuts))

    assert text_of(chunks) == "one STO"
    assert chunks[-1].finish_reason is FinishReason.LENGTH


def test_what_could_become_a_stop_string_is_held_back() -> None:
    chunks = feed(answer("STOP"), b"one S", b"TO", b"RM")

    assert [chunk.text for chunk in chunks] == ["one ", "", "STORM"]


def test_a_stop_string_at_the_very_end_is_a_stop() -> None:
    [chunk] = feed(answer("d"), b"abcd")

    assert (chunk.text, chunk.finish_reason) == ("abc", FinishReason.STOP)


def test_the_end_token_counts_and_has_no_text() -> None:
    [chunk] = feed(answer(), [*b"ab", END], end=FinishReason.STOP)

    assert chunk.text == "ab"
    assert chunk.usage.completion_tokens == 3
    assert chunk.token_ids == (*b"ab", END)


def test_the_leading_space_is_dropped_once() -> None:
    growing = answer(tokenizer=SpaceTokenizer())

    assert text_of(feed(growing, [256], b" ", b" a")) == " a"


def test_an_answer_that_is_cancelled_keeps_its_counts() -> None:
    growing = answer()
    feed(growing, b"abc", [], end=FinishReason.CANCELLED)

    assert growing.outcome == "cancelled"
    assert growing.record(103.0).usage.completion_tokens == 3


def test_an_event_without_tokens_is_no_chunk() -> None:
    assert answer().take_in(event([]), 101.0) is None


def test_a_failure_is_what_the_reader_gets() -> None:
    growing, failure = answer(), EngineFailed("broken")

    assert growing.take_in(event([], failure), 101.0) is failure
    assert growing.outcome == "engine_failed"


def test_log_probabilities_stop_where_the_tokens_do() -> None:
    logprobs = Logprobs(
        chosen=np.array([-0.1, -0.2, -0.3, -0.4], np.float32),
        top_ids=np.array([[1, 2], [3, 4], [5, 6], [7, 8]], np.int32),
        top=np.array([[-0.1, -1]] * 4, np.float32),
    )
    growing = answer("b", logprobs=2)
    chunk = growing.take_in(event(b"abcd", logprobs=logprobs), 101.0)

    assert isinstance(chunk, Chunk)
    assert chunk.logprobs is not None
    assert [entry.token_id for entry in chunk.logprobs] == list(b"ab")
    assert [entry.token_bytes for entry in chunk.logprobs] == [b"a", b"b"]
    assert [entry.logprob for entry in chunk.logprobs] == [
        float(np.float32(-0.1)),
        float(np.float32(-0.2)),
    ]
    assert [other.token_id for other in chunk.logprobs[1].top] == [3, 4]
    assert chunk.logprobs[1].top[1].token_bytes == b"\x04"


def test_the_last_chunk_of_an_answer_that_asked_has_an_empty_list() -> None:
    growing = answer(logprobs=0)
    chunk = growing.take_in(event([], FinishReason.CANCELLED), 101.0)

    assert isinstance(chunk, Chunk)
    assert chunk.logprobs == ()


def test_times_count_from_when_it_was_queued() -> None:
    growing = answer()
    growing.admitted_seconds = 100.5
    growing.take_in(event(b"a"), 102.0)
    growing.take_in(event(b"b", FinishReason.LENGTH), 104.0)
    record = growing.record(104.0)

    assert record.request_id == 3
    assert record.outcome == "length"
    assert record.queue_seconds == pytest.approx(0.5)
    assert record.first_token_seconds == pytest.approx(2.0)
    assert record.total_seconds == pytest.approx(4.0)


def test_what_never_happened_has_no_time() -> None:
    growing = answer()
    growing.take_in(event([], EngineFailed("broken")), 102.0)
    record = growing.record(102.0)

    assert record.queue_seconds is None
    assert record.first_token_seconds is None
    assert dataclasses.asdict(record.usage)["prompt_tokens"] == 2
