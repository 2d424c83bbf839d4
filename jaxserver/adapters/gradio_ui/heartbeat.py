"""Answers the heartbeats of `gradio_client`, so that a server can stop."""

import asyncio
import contextlib

from jaxserver.adapters.gradio_ui.headers import App, Receive, Scope, Send

LIFE_SECONDS = 5.0
_PATH = "/gradio_api/heartbeat/"
_HEADERS = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-store")]


class ShortHeartbeats:
    """ASGI middleware that ends every heartbeat soon; the client begins another.

    Gradio's own never ends, and a server that lets its answers end before it stops
    would wait for it as long as any client lives. What Gradio does at its end, to drop
    the state of a session, is not needed here.
    """

    def __init__(self, app: App, life_seconds: float = LIFE_SECONDS) -> None:
        self._app = app
        self._life_seconds = life_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or _PATH not in scope["path"]:
            await self._app(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
        alive = {"type": "http.response.body", "body": b"data: ALIVE\n\n"}
        await send({**alive, "more_body": True})
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._life_seconds):
                while (await receive())["type"] != "http.disconnect":
                    pass
        await send({"type": "http.response.body", "body": b""})
