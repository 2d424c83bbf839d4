"""The port that turns prompts into answers."""

import os
from collections.abc import AsyncIterator, Iterator
from typing import Protocol, Self

from jaxserver.ports.types import Chunk, GenerationRequest


class Stream(Protocol):
    """The chunks of one answer, read by `for` or by `async for`, once.

    Iterating raises what the request fails with: `InvalidRequest`, `PromptTooLong` or
    `EngineFailed`. After the chunk that has a finish reason, iteration ends.
    """

    def __iter__(self) -> Iterator[Chunk]: ...

    def __next__(self) -> Chunk: ...

    def __aiter__(self) -> AsyncIterator[Chunk]: ...

    async def __anext__(self) -> Chunk: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *exception: object) -> None:
        """Cancels, which does nothing to an answer that is finished."""
        ...

    def cancel(self) -> None:
        """Stops the work, from any thread, any number of times.

        The slot is free at most two dispatches later. A reader that goes on gets a
        last chunk with `FinishReason.CANCELLED`, unless the answer was finished.
        """
        ...


class SavableStream(Stream, Protocol):
    """A stream whose answer can go on elsewhere, from the last chunk that was read."""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a file with which `JAXServer.resume` goes on, here or elsewhere.

        It holds tokens, settings and what the cache holds of them.

        Raises:
            EngineFailed: The engine has ended, or has not taken the request.
            OSError: The file cannot be written.
        """
        ...

    def fork(self, count: int) -> "list[SavableStream]":
        """Other continuations, each with draws of its own; this one goes on as well.

        Raises:
            InvalidRequest: There are not so many choices.
            ServerFull: The queue has no room.
        """
        ...


class Generator(Protocol):
    """Turns a prompt into a stream of chunks.

    Every implementation passes `tests/contract/test_generator.py`.
    """

    def generate(self, request: GenerationRequest) -> Stream:
        """Queues a request and returns at once.

        Raises:
            ServerFull: The queue holds as many requests as it may.
            NotReady: The model is not there yet, or the server is shutting down.
            EngineFailed: The engine does not run any more.
        """
        ...
