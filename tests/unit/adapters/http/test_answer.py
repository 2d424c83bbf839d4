import asyncio

import pytest

from jaxserver.adapters.http.answer import chunks_of, finished, together
from jaxserver.ports.errors import EngineFailed
from jaxserver.ports.types import Chunk, GenerationRequest, Usage
from tests.fakes import ScriptedGenerator

REQUEST = GenerationRequest(prompt="p")


def test_an_answer_is_its_chunks_together() -> None:
    generator = ScriptedGenerator("Hel", "lo")
    answer = asyncio.run(finished(chunks_of(generator, REQUEST)))
    assert answer.text == "Hello"
    assert answer.usage == Usage(prompt_tokens=3, completion_tokens=2)
    assert answer.seed == 7
    assert answer.logprobs is None


def test_closing_the_chunks_cancels_the_request() -> None:
    generator = ScriptedGenerator("Hel", "lo")

    async def read_one() -> Chunk:
        chunks = chunks_of(generator, REQUEST)
        first = await anext(chunks)
        await chunks.aclose()
        return first

    assert asyncio.run(read_one()).text == "Hel"
    assert generator.streams[0].cancelled.is_set()


def test_an_answer_that_somebody_else_cancelled_is_an_error() -> None:
    generator = ScriptedGenerator("Hel", "lo")

    async def read() -> None:
        async for _ in chunks_of(generator, REQUEST):
            generator.streams[0].cancel()

    with pytest.raises(EngineFailed):
        asyncio.run(read())


def test_an_answer_without_an_end_is_an_error() -> None:
    usage = Usage(prompt_tokens=1, completion_tokens=1)
    for chunks in ([], [Chunk(text="x", token_ids=(1,), usage=usage)]):
        with pytest.raises(EngineFailed):
            together(chunks)
