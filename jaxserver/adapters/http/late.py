"""Lets the application have some of its pages only once somebody asks for one."""

import asyncio
import dataclasses
from collections.abc import Callable
from concurrent.futures import Future

from starlette.types import ASGIApp, Receive, Scope, Send

from jaxserver.adapters.http.scope import route_path


@dataclasses.dataclass(frozen=True, slots=True)
class WaitsFor:
    """ASGI middleware: whoever asks for what is not mounted yet waits until it is.

    Attributes:
        paths: Those that are meant, each with everything below it, but for `/`.
        mounted: Ends when they are there; is the same whenever it is called.
    """

    app: ASGIApp
    paths: frozenset[str]
    mounted: Callable[[], Future[None]]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in {"http", "websocket"} and self._is_meant(scope):
            await asyncio.shield(asyncio.wrap_future(self.mounted()))
        await self.app(scope, receive, send)

    def _is_meant(self, scope: Scope) -> bool:
        path = route_path(scope)
        first = f"/{path.lstrip('/').partition('/')[0]}"
        return first in self.paths
