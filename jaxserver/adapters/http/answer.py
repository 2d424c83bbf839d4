"""Reads a generator's stream to its end, or until it is no longer wanted."""

import contextlib
import dataclasses
from collections.abc import AsyncGenerator
from typing import Any

from jaxserver.ports.errors import EngineFailed
from jaxserver.ports.generator import Generator
from jaxserver.ports.receipt import Receipt
from jaxserver.ports.types import (
    Chunk,
    FinishReason,
    GenerationRequest,
    TokenLogprob,
    Usage,
)

Chunks = AsyncGenerator[Chunk, None]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FinishedAnswer:
    """An answer as a whole.

    Attributes:
        logprobs: One entry per drawn token where the request asked, else None.
        receipt: Where the request asked.
    """

    text: str
    logprobs: tuple[TokenLogprob, ...] | None
    usage: Usage
    finish_reason: FinishReason
    seed: int | None
    receipt: Receipt | None = None


async def chunks_of(generator: Generator, request: GenerationRequest) -> Chunks:
    """The chunks of one answer; closing this cancels the request.

    Raises:
        EngineFailed: The answer was cancelled, but not by its reader.
    """
    with generator.generate(request) as stream:
        async for chunk in stream:
            if chunk.finish_reason is FinishReason.CANCELLED:
                raise EngineFailed("the server cancelled the answer")
            yield chunk


async def finished(chunks: Chunks) -> FinishedAnswer:
    """Waits for the whole answer.

    Raises:
        EngineFailed: The chunks ended without a finish reason.
    """
    async with contextlib.aclosing(chunks):
        return together([chunk async for chunk in chunks])


def together(chunks: list[Chunk]) -> FinishedAnswer:
    """The answer that chunks, the last one included, make up."""
    if not chunks or chunks[-1].finish_reason is None:
        raise EngineFailed("the answer broke off")
    last = chunks[-1]
    asked = any(chunk.logprobs is not None for chunk in chunks)
    entries = tuple(entry for chunk in chunks for entry in chunk.logprobs or ())
    return FinishedAnswer(
        text="".join(chunk.text for chunk in chunks),
        logprobs=entries if asked else None,
        usage=last.usage,
        finish_reason=chunks[-1].finish_reason,
        seed=last.seed,
        receipt=last.receipt,
    )


def receipt_field(receipt: Receipt | None) -> dict[str, Any]:
    """What an answer says of its receipt: nothing where there is none."""
    return {} if receipt is None else {"receipt": receipt.to_json()}
