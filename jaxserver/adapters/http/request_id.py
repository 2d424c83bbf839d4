"""Names every request, by its client's name for it or one of ours."""

import dataclasses
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jaxserver.ports.origin import ORIGIN, Origin

HEADER = "X-Request-Id"
_MAX_LENGTH = 128
_SCOPE_KEY = "jaxserver.request_id"


@dataclasses.dataclass(frozen=True, slots=True)
class RequestIds:
    """Sends the name back with every response, and tells `ORIGIN` of it meanwhile."""

    app: ASGIApp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        request_id = _taken(headers.get(HEADER)) or uuid.uuid4().hex
        scope[_SCOPE_KEY] = request_id

        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start":
                message.setdefault("headers", [])
                MutableHeaders(scope=message)[HEADER] = request_id
            await send(message)

        origin = Origin(request_id, _taken(headers.get("traceparent")))
        token = ORIGIN.set(origin)
        try:
            await self.app(scope, receive, send_named)
        finally:
            ORIGIN.reset(token)


def name_header(scope: Scope) -> dict[str, str]:
    """The header, for what is answered outside of `RequestIds`, where that has been."""
    return {HEADER: scope[_SCOPE_KEY]} if _SCOPE_KEY in scope else {}


def _taken(value: str | None) -> str | None:
    """A header's value where it may be sent back and written down as it is."""
    if not value or len(value) > _MAX_LENGTH or value != value.strip():
        return None
    return value if value.isascii() and value.isprintable() else None
