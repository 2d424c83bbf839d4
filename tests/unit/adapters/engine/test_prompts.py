import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxserver.adapters.engine.prompts import Prompt, read_prompt
from jaxserver.adapters.engine.requests import Limits
from jaxserver.ports.config import ServerConfig
from jaxserver.ports.errors import InvalidRequest, PromptTooLong
from jaxserver.ports.prompt import Rendered
from jaxserver.ports.types import GenerationRequest, SamplingParams
from tests.fakes import ByteTokenizer

BOS = 256
CONFIG = ServerConfig(max_stream_tokens=8)
MAX_LEN = 40
ROOM = MAX_LEN - 8


def read(request: GenerationRequest) -> Prompt:
    return read_prompt(request, ByteTokenizer(), CONFIG, Limits(MAX_LEN))


def test_raw_text_gets_the_tokens_of_the_tokenizers_settings() -> None:
    assert read(GenerationRequest(prompt="ab")).ids == (BOS, *b"ab")


def test_rendered_text_gets_no_further_token() -> None:
    assert read(GenerationRequest(prompt=Rendered("ab"))).ids == (*b"ab",)


def test_ids_are_taken_as_they_are() -> None:
    assert read(GenerationRequest(prompt=(1, 2))) == Prompt((1, 2), 0)


@pytest.mark.parametrize("token", [-1, 258, 2**40])
def test_an_id_outside_the_vocabulary_is_refused(token: int) -> None:
    with pytest.raises(InvalidRequest, match="token ids from 0 to 257") as refusal:
        read(GenerationRequest(prompt=(1, token)))

    assert refusal.value.field == "prompt"
    assert refusal.value.got == str(token)


@pytest.mark.parametrize("field", ["stop_token_ids", "logit_bias"])
def test_ids_of_the_sampling_are_checked_too(field: str) -> None:
    sampling = (
        SamplingParams(stop_token_ids=(258,))
        if field == "stop_token_ids"
        else SamplingParams(logit_bias={258: 1.0})
    )
    with pytest.raises(InvalidRequest) as refusal:
        read(GenerationRequest(prompt=(1,), sampling=sampling))

    assert refusal.value.field == field


@pytest.mark.parametrize("prompt", [Rendered(""), ()])
def test_a_prompt_without_a_token_is_refused(prompt: str | tuple[int, ...]) -> None:
    with pytest.raises(InvalidRequest, match="at least one token"):
        read(GenerationRequest(prompt=prompt))


def test_a_prompt_may_leave_room_for_a_single_token() -> None:
    assert len(read(GenerationRequest(prompt=(1,) * (MAX_LEN - 1))).ids) == 39


def test_a_prompt_that_leaves_no_room_is_refused_with_length_and_room() -> None:
    with pytest.raises(PromptTooLong) as refusal:
        read(GenerationRequest(prompt=(1,) * MAX_LEN))

    assert (refusal.value.length, refusal.value.room) == (40, 39)


def test_a_prompt_that_fits_is_not_cut() -> None:
    prompt = tuple(range(ROOM))

    assert read(GenerationRequest(prompt=prompt, truncate=True)) == Prompt(prompt, 0)


def test_a_cut_prompt_keeps_its_last_tokens() -> None:
    cut = read(GenerationRequest(prompt=tuple(range(100)), truncate=True))

    assert cut == Prompt(tuple(range(100 - ROOM, 100)), 100 - ROOM)


def test_a_cut_prompt_keeps_its_beginning_of_text() -> None:
    cut = read(GenerationRequest(prompt="x" * 50 + "abc", truncate=True))

    assert cut.ids == (BOS, *b"x" * (ROOM - 4), *b"abc")
    assert cut.dropped == 54 - ROOM


def test_a_cut_prompt_keeps_what_it_was_told_to() -> None:
    text = "system: be brief\n" + "0123456789" * 10
    prompt = Rendered(text).keeping(lambda: "system: be brief\n")
    cut = read(GenerationRequest(prompt=prompt, truncate=True))

    assert bytes(cut.ids) == b"system: be brief\n" + text.encode()[17 - ROOM :]
    assert cut.dropped == len(text) - ROOM


def test_what_a_prompt_keeps_is_asked_for_only_when_it_is_cut() -> None:
    asked = list[str]()

    def keep() -> str:
        asked.append("asked")
        return "s"

    short, long = (Rendered("s" * size).keeping(keep) for size in (ROOM, ROOM + 1))
    read(GenerationRequest(prompt=short, truncate=True))
    assert asked == []
    read(GenerationRequest(prompt=long, truncate=True))
    assert asked == ["asked"]


def test_a_kept_prefix_that_fills_the_room_is_refused() -> None:
    prompt = Rendered("s" * ROOM + "x" * 60).keeping(lambda: "s" * ROOM)
    with pytest.raises(PromptTooLong) as refusal:
        read(GenerationRequest(prompt=prompt, truncate=True))

    assert (refusal.value.length, refusal.value.room) == (ROOM + 60, ROOM)


@given(text=st.text(min_size=1, max_size=80), kept=st.integers(0, 10))
def test_a_cut_prompt_fits_and_loses_what_it_says(text: str, kept: int) -> None:
    whole = list(text.encode())
    prompt = Rendered(text).keeping(lambda: text[:kept])
    request = GenerationRequest(prompt=prompt, truncate=True)
    try:
        cut = read(request)
    except PromptTooLong:
        assert len(text[:kept].encode()) >= ROOM
        return

    assert len(cut.ids) == min(len(whole), ROOM)
    assert len(cut.ids) + cut.dropped == len(whole)
    head = len(text[:kept].encode())
    tail = len(cut.ids) - head
    assert list(cut.ids[:head]) == whole[:head]
    assert list(cut.ids[head:]) == whole[len(whole) - tail :]
