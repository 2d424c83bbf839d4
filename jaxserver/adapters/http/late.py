"""Lets requests wait for what the application does not have yet."""

import asyncio
import contextlib
import dataclasses
from concurrent.futures import Future

from starlette.types import ASGIApp, Receive, Scope, Send

from jaxserver.adapters.http.scope import route_path


@dataclasses.dataclass(frozen=True, slots=True)
class WaitsFor:
    """ASGI middleware: whoever asks for what is being mounted waits until it is there.

    Attributes:
        paths: Those that are meant, each with everything below it, but for `/`.
        mounted: Ends when they are there; its error is for others to tell.
    """

    app: ASGIApp
    paths: frozenset[str]
    mounted: Future[None]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in {"http", "websocket"} and self._is_meant(scope):
            with contextlib.suppress(Exception):
                await asyncio.shield(asyncio.wrap_future(self.mounted))
        await self.app(scope, receive, send)

    def _is_meant(self, scope: Scope) -> bool:
        path = route_path(scope)
        first = f"/{path.lstrip('/').partition('/')[0]}"
        return first in self.paths and not self.mounted.done()
