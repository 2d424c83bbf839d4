"""The reader's end of an answer: one queue, read by `for` or by `async for`."""

import asyncio
import collections
import contextlib
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol, Self, TypeAlias

from jaxserver.ports.errors import JaxServerError
from jaxserver.ports.generator import SavableStream
from jaxserver.ports.types import Chunk, GenerationRequest

Item: TypeAlias = Chunk | JaxServerError


class Waiter(NamedTuple):
    """An asynchronous reader that sleeps until something comes."""

    loop: asyncio.AbstractEventLoop
    future: "asyncio.Future[None]"


class Channel:
    """Carries chunks from the engine's threads to the one reader."""

    def __init__(self) -> None:
        self._items: collections.deque[Item] = collections.deque()
        self._has_items = threading.Condition()
        self._waiter: Waiter | None = None

    def put(self, item: Item) -> Waiter | None:
        """Adds an item, wakes a plain reader, returns an asynchronous one to wake."""
        with self._has_items:
            self._items.append(item)
            self._has_items.notify()
            waiter, self._waiter = self._waiter, None
        return waiter

    def take(self) -> Item:
        """Waits for the next item."""
        with self._has_items:
            while not self._items:
                self._has_items.wait()
            return self._items.popleft()

    async def take_async(self) -> Item:
        """The same without blocking the event loop."""
        while True:
            with self._has_items:
                if self._items:
                    return self._items.popleft()
                loop = asyncio.get_running_loop()
                waiter = Waiter(loop, loop.create_future())
                self._waiter = waiter
            await waiter.future


def wake(waiters: list[Waiter]) -> None:
    """Wakes asynchronous readers, with one call per event loop."""
    by_loop: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}
    for waiter in waiters:
        by_loop.setdefault(waiter.loop, []).append(waiter.future)
    for loop, futures in by_loop.items():
        with contextlib.suppress(RuntimeError):  # the loop is closed, nobody waits
            loop.call_soon_threadsafe(_resolve, futures)


def _resolve(futures: list["asyncio.Future[None]"]) -> None:
    for future in futures:
        if not future.done():
            future.set_result(None)


class Begun(NamedTuple):
    """A request, and how far its reader is.

    Attributes:
        read: The beginning of the answer.
        is_told: Its reader has all of the text, what would be held back included.
    """

    request: GenerationRequest
    read: tuple[int, ...] = ()
    is_told: bool = False


class GoingOn(Protocol):
    """What knows how an answer goes on, when its reader has some tokens of it."""

    def save(self, path: Path, read: tuple[int, ...], is_finished: bool) -> None: ...

    def fork(self, read: tuple[int, ...], count: int) -> "list[SavableStream]": ...


class EngineStream:
    """Implements the `SavableStream` port; dropped without being read, it cancels."""

    def __init__(
        self, channel: Channel, cancel: Callable[[], None], going_on: "GoingOn"
    ) -> None:
        self._channel = channel
        self._cancel = cancel
        self._going_on = going_on
        self._read: list[int] = []
        self._is_finished = False

    def __iter__(self) -> Iterator[Chunk]:
        return self

    def __next__(self) -> Chunk:
        if self._is_finished:
            raise StopIteration
        return self._accept(self._channel.take())

    def __aiter__(self) -> AsyncIterator[Chunk]:
        return self

    async def __anext__(self) -> Chunk:
        if self._is_finished:
            raise StopAsyncIteration
        return self._accept(await self._channel.take_async())

    def _accept(self, item: Item) -> Chunk:
        if isinstance(item, JaxServerError):
            self._is_finished = True
            raise item
        self._is_finished = item.finish_reason is not None
        self._read += item.token_ids
        return item

    def save(self, path: str | os.PathLike[str]) -> None:
        self._going_on.save(Path(path), tuple(self._read), self._is_finished)

    def fork(self, count: int) -> "list[SavableStream]":
        return self._going_on.fork(tuple(self._read), count)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.cancel()

    def __del__(self) -> None:
        self.cancel()

    def cancel(self) -> None:
        if not self._is_finished:
            self._cancel()
