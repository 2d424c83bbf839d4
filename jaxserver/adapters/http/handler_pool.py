"""Runs the user's own handlers in threads, and tells them when nobody waits."""

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from jaxserver.ports.errors import ServerFull
from jaxserver.ports.handlers import CANCEL, Answer, CancelToken

Body = TypeVar("Body")

_RETRY_AFTER_SECONDS = 1


class HandlerPool:
    """At most `threads` handlers at once; one more is refused, not queued."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._executor = ThreadPoolExecutor(threads, "jaxserver-handler")
        self._running: set[CancelToken] = set()

    @property
    def is_busy(self) -> bool:
        """Every thread has a handler, be it one that nobody waits for any more."""
        return len(self._running) >= self._threads

    async def run(self, handler: Callable[[Body], Answer], body: Body) -> Answer:
        """Calls a handler; when this is cancelled, its `CANCEL` token is set.

        Raises:
            ServerFull: Every thread is busy.
        """
        if self.is_busy:
            raise ServerFull("every handler is busy", _RETRY_AFTER_SECONDS)
        cancel = CancelToken()
        context = contextvars.copy_context()
        context.run(CANCEL.set, cancel)
        self._running.add(cancel)
        future = self._executor.submit(context.run, handler, body)

        def ended(_: Future[Answer]) -> None:
            self._running.discard(cancel)

        future.add_done_callback(ended)
        try:
            return await asyncio.wrap_future(future)
        finally:
            cancel.set()

    def close(self) -> None:
        """Tells what still runs to stop, without waiting for it."""
        for cancel in tuple(self._running):
            cancel.set()
        self._executor.shutdown(wait=False, cancel_futures=True)
