"""Sends an answer piece by piece, as server-sent events."""

import contextlib
import logging
from collections.abc import AsyncGenerator

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from jaxserver.adapters.http.disconnect import ClientLeft, unless_client_leaves
from jaxserver.adapters.http.errors import error_json, failure_of
from jaxserver.adapters.http.scope import route_path

DONE = "[DONE]"
_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
_log = logging.getLogger(__name__)


class EventStream(Response):
    """Plays JSON events, then `[DONE]`; stops making them when the client leaves.

    Nothing is sent before the first event is there, so an error that comes earlier is
    raised and answered with its own status. A later one is an event, and the last.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[str, None]) -> None:
        super().__init__(headers=_HEADERS)
        del self.headers["content-length"]
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with contextlib.suppress(ClientLeft):
            await unless_client_leaves(receive, self._play(route_path(scope), send))

    async def _play(self, path: str, send: Send) -> None:
        async with contextlib.aclosing(self._events) as events:
            first = await anext(events)
            await send(
                {
                    "type": "http.response.start",
                    "status": self.status_code,
                    "headers": self.raw_headers,
                }
            )
            await _send_event(send, first)
            try:
                async for event in events:
                    await _send_event(send, event)
            except Exception as error:
                await _send_event(send, _last_words(error, path), more=False)
            else:
                await _send_event(send, DONE, more=False)


def _last_words(error: Exception, path: str) -> str:
    failure = failure_of(error, path)
    if failure.code == "internal_error":
        _log.error("an answer failed midway", exc_info=error)
    return error_json(failure, path)


async def _send_event(send: Send, data: str, *, more: bool = True) -> None:
    body = f"data: {data}\n\n".encode()
    await send({"type": "http.response.body", "body": body, "more_body": more})
