"""Requests for the tests of the engine, and what their answers are together."""

from collections.abc import Iterable
from typing import Any

from jaxserver.ports.types import Chunk, GenerationRequest, SamplingParams

LETTERS = dict.fromkeys(range(97, 123), 40.0)
"""A bias under which an answer is made of letters."""


def request(
    prompt: str | tuple[int, ...] = "abc", *, streaming: bool = True, **sampling: Any
) -> GenerationRequest:
    """Goes on for 60 tokens, each answer like the other, unless told otherwise."""
    wishes = {"seed": 1, "temperature": 1.0, "max_new_tokens": 60, "ignore_eos": True}
    return GenerationRequest(
        prompt=prompt,
        streaming=streaming,
        sampling=SamplingParams(**{**wishes, **sampling}),
    )


LONG = request(max_new_tokens=300)


def text_of(chunks: Iterable[Chunk]) -> str:
    return "".join(chunk.text for chunk in chunks)


def ids_of(chunks: Iterable[Chunk]) -> tuple[int, ...]:
    return tuple(token for chunk in chunks for token in chunk.token_ids)
