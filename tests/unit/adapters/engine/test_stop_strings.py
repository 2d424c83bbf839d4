"""Stop strings that lie across the blocks of a real engine."""

from collections.abc import Iterator

import pytest

from jaxserver.adapters.engine.text import TextEngine
from jaxserver.ports.types import FinishReason
from tests import engines
from tests.unit.adapters.engine.answers import LETTERS, ids_of, request, text_of

BLOCK = engines.NARROW.max_stream_tokens


@pytest.fixture(scope="module")
def engine() -> Iterator[TextEngine]:
    with engines.running() as running:
        yield running


@pytest.fixture(scope="module")
def whole(engine: TextEngine) -> str:
    """The answer that is not stopped: sixty letters, one token each."""
    text = text_of(engine.generate(request(logit_bias=LETTERS)))
    assert len(text) == 60
    return text


@pytest.mark.parametrize("begin", range(1, 4 * BLOCK, 3))
@pytest.mark.parametrize("length", [2, 5, BLOCK + 2])
def test_a_stop_string_ends_the_answer_wherever_it_lies(
    engine: TextEngine, whole: str, begin: int, length: int
) -> None:
    stop = whole[begin : begin + length]
    first = whole.index(stop)
    chunks = list(engine.generate(request(logit_bias=LETTERS, stop=(stop,))))

    assert text_of(chunks) == whole[:first]
    assert bytes(ids_of(chunks)).decode() == whole[: first + length]
    assert chunks[-1].finish_reason is FinishReason.STOP
    assert chunks[-1].usage.completion_tokens == first + length


@pytest.mark.parametrize("begin", range(1, 4 * BLOCK, 3))
def test_a_stop_string_that_is_never_completed_changes_nothing(
    engine: TextEngine, whole: str, begin: int
) -> None:
    never = whole[begin : begin + 4] + "!"
    chunks = list(engine.generate(request(logit_bias=LETTERS, stop=(never,))))

    assert text_of(chunks) == whole
    assert chunks[-1].finish_reason is FinishReason.LENGTH


def test_the_stop_string_that_is_complete_first_counts(
    engine: TextEngine, whole: str
) -> None:
    early, late = whole[10:12], whole[9:20]
    wanted = request(logit_bias=LETTERS, stop=(late, early))

    assert text_of(engine.generate(wanted)) == whole[: whole.index(early)]


def test_a_stop_id_ends_the_answer_and_is_counted(
    engine: TextEngine, whole: str
) -> None:
    token = ord(whole[17])
    first = whole.index(whole[17])
    wanted = request(logit_bias=LETTERS, stop_token_ids=(token,))
    chunks = list(engine.generate(wanted))

    assert text_of(chunks) == whole[: first + 1]
    assert chunks[-1].usage.completion_tokens == first + 1
    assert chunks[-1].finish_reason is FinishReason.STOP


def test_the_models_end_token_ends_the_answer_unless_it_is_ignored(
    engine: TextEngine,
) -> None:
    bias = {257: 100.0}
    [last] = engine.generate(request(logit_bias=bias, ignore_eos=False))
    ignored = list(engine.generate(request(logit_bias=bias)))

    assert (last.text, last.token_ids) == ("", (257,))
    assert last.finish_reason is FinishReason.STOP
    assert last.usage.completion_tokens == 1
    assert ids_of(ignored) == (257,) * 60
