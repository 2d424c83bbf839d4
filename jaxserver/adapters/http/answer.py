"""Reads a generator's stream to its end, or until it is no longer wanted."""

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncGenerator, Sequence
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
Interleaved = AsyncGenerator[tuple[int, Chunk], None]
"""The chunks of several answers as they come, each with its answer's number."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FinishedAnswer:
    """An answer as a whole.

    Attributes:
        logprobs: One entry per drawn token where the request asked, else None.
        prompt_logprobs: The same for the prompt, from its second token on.
        receipt: Where the request asked.
    """

    text: str
    logprobs: tuple[TokenLogprob, ...] | None
    prompt_logprobs: tuple[TokenLogprob, ...] | None
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


async def all_finished(answers: Sequence[Chunks]) -> list[FinishedAnswer]:
    """Waits for several whole answers; where one fails, nobody wants the others."""
    tasks = [asyncio.ensure_future(finished(chunks)) for chunks in answers]
    try:
        return await asyncio.gather(*tasks)
    finally:
        await _cancelled(tasks)


async def interleaved(answers: Sequence[Chunks]) -> Interleaved:
    """Reads several answers side by side, and closes all when this is closed."""
    coming = {_next_of(chunks): index for index, chunks in enumerate(answers)}
    try:
        while coming:
            done, _ = await asyncio.wait(coming, return_when=asyncio.FIRST_COMPLETED)
            for task in sorted(done, key=coming.__getitem__):
                index = coming.pop(task)
                with contextlib.suppress(StopAsyncIteration):
                    chunk = task.result()
                    coming[_next_of(answers[index])] = index
                    yield index, chunk
    finally:
        await _cancelled(list(coming))
        for chunks in answers:
            await chunks.aclose()


def _next_of(chunks: Chunks) -> "asyncio.Task[Chunk]":
    async def step() -> Chunk:
        return await anext(chunks)

    return asyncio.ensure_future(step())


async def _cancelled(tasks: Sequence["asyncio.Future[Any]"]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def together(chunks: list[Chunk]) -> FinishedAnswer:
    """The answer that chunks, the last one included, make up."""
    if not chunks or chunks[-1].finish_reason is None:
        raise EngineFailed("the answer broke off")
    first, last = chunks[0], chunks[-1]
    asked = any(chunk.logprobs is not None for chunk in chunks)
    entries = tuple(entry for chunk in chunks for entry in chunk.logprobs or ())
    return FinishedAnswer(
        text="".join(chunk.text for chunk in chunks),
        logprobs=entries if asked else None,
        prompt_logprobs=first.prompt_logprobs,
        usage=last.usage,
        finish_reason=chunks[-1].finish_reason,
        seed=last.seed,
        receipt=last.receipt,
    )


def receipt_field(receipt: Receipt | None) -> dict[str, Any]:
    """What an answer says of its receipt: nothing where there is none."""
    return {} if receipt is None else {"receipt": receipt.to_json()}
