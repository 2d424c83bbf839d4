"""Scoring a text gives the log-probabilities that generating it gave, bit for bit."""

import contextlib
import dataclasses
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxserver.adapters.engine.text import TextEngine
from jaxserver.ports.errors import InvalidRequest, PromptTooLong
from jaxserver.ports.types import Chunk, FinishReason, GenerationRequest, SamplingParams
from tests import engines

# The hook that checks types draws random numbers, on the engine's thread meanwhile.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module")

SCORE = SamplingParams(max_new_tokens=0, logprobs=20)


@pytest.fixture(scope="module")
def house() -> Iterator[list[TextEngine]]:
    """Chunks of a prompt are of other lengths in each."""
    with contextlib.ExitStack() as stack:
        sizes = (engines.WIDE, engines.NARROW)
        parts = [engines.Parts(sizes=size) for size in sizes]
        yield [stack.enter_context(engines.running(part)) for part in parts]


def only(engine: TextEngine, request: GenerationRequest) -> Chunk:
    (chunk,) = engine.generate(request)
    return chunk


@given(
    prompt=st.binary(min_size=1, max_size=300),
    seed=st.integers(0, 2**64 - 1),
    temperature=st.sampled_from([0.0, 0.7, 1.5]),
    count=st.integers(1, 60),
)
def test_a_score_is_what_generating_reported(
    house: list[TextEngine], prompt: bytes, seed: int, temperature: float, count: int
) -> None:
    wish = SamplingParams(
        temperature=temperature,
        seed=seed,
        max_new_tokens=count,
        ignore_eos=True,
        logprobs=20,
    )
    generated = list(
        house[0].generate(GenerationRequest(prompt=tuple(prompt), sampling=wish))
    )
    drawn = tuple(token for chunk in generated for token in chunk.token_ids)
    reported = tuple(entry for chunk in generated for entry in chunk.logprobs or ())
    text = (*prompt, *drawn)
    request = GenerationRequest(prompt=text, sampling=SCORE, score_prompt=True)

    for engine in house:
        scored = only(engine, request)
        assert scored.finish_reason is FinishReason.LENGTH
        assert (scored.token_ids, scored.usage.completion_tokens) == ((), 0)
        assert scored.prompt_logprobs is not None
        assert tuple(e.token_id for e in scored.prompt_logprobs) == text[1:]
        assert scored.prompt_logprobs[len(prompt) - 1 :] == reported


def test_a_scored_prompt_is_continued_as_one_that_is_not(
    house: list[TextEngine],
) -> None:
    wish = dataclasses.replace(SCORE, max_new_tokens=20, temperature=1.0, seed=3)
    plain = GenerationRequest(prompt="A sentence and more.", sampling=wish)
    scored = dataclasses.replace(plain, score_prompt=True)
    engine = house[1]

    first, *rest = engine.generate(scored)
    assert first.prompt_logprobs is not None
    assert all(chunk.prompt_logprobs is None for chunk in rest)
    ids = [token for chunk in (first, *rest) for token in chunk.token_ids]
    assert ids == [t for chunk in engine.generate(plain) for t in chunk.token_ids]


def test_a_text_that_fills_the_sequence_can_be_scored(house: list[TextEngine]) -> None:
    text = tuple(byte % 256 for byte in range(engines.MAX_LEN))
    request = GenerationRequest(prompt=text, sampling=SCORE, score_prompt=True)
    scored = only(house[1], request).prompt_logprobs
    assert scored is not None
    assert len(scored) == engines.MAX_LEN - 1
    longer = dataclasses.replace(request, prompt=(*text, 1))
    with pytest.raises(PromptTooLong):
        list(house[1].generate(longer))


def test_a_score_without_log_probabilities_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="score_prompt"):
        GenerationRequest(prompt="a", score_prompt=True)
