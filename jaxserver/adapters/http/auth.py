"""Asks for the API key before anything else is done."""

import base64
import binascii
import dataclasses
import hmac

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from jaxserver.adapters.http.errors import Failure, error_json
from jaxserver.adapters.http.scope import route_path

OPEN_PATHS = frozenset({"/health", "/ready"})
_POLICY_VIOLATION = 1008
_FAILURE = Failure(
    status=401,
    code="invalid_api_key",
    message=(
        "Authorization: allowed is `Bearer KEY`, or Basic with the key as the password"
    ),
    field="Authorization",
)


@dataclasses.dataclass(frozen=True, slots=True)
class ApiKeyGate:
    """Lets a request or websocket through that shows the key.

    It stands before the router, so that what is mounted later is covered as well. A
    browser asks its user for the key, as the password of any user name.
    """

    app: ASGIApp
    api_key: str

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in {"http", "websocket"} or self._may_pass(scope):
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": _POLICY_VIOLATION})
        else:
            await _refusal(route_path(scope))(scope, receive, send)

    def _may_pass(self, scope: Scope) -> bool:
        if scope["type"] == "http" and route_path(scope) in OPEN_PATHS:
            return True
        shown = _shown_key(Headers(scope=scope).get("authorization", ""))
        key = self.api_key.encode(errors="surrogatepass")
        return bool(shown) and hmac.compare_digest(shown, key)


def _shown_key(authorization: str) -> bytes:
    """The key in a header's value, or nothing, which no key equals."""
    scheme, _, credentials = authorization.encode("latin-1").partition(b" ")
    match scheme.lower():
        case b"bearer":
            return credentials.strip()
        case b"basic":
            return _password(credentials.strip())
        case _:
            return b""


def _password(credentials: bytes) -> bytes:
    try:
        decoded = base64.b64decode(credentials, validate=True)
    except binascii.Error:
        return b""
    return decoded.partition(b":")[2]


def _refusal(path: str) -> Response:
    response = Response(
        error_json(_FAILURE, path), _FAILURE.status, media_type="application/json"
    )
    headers = MutableHeaders(raw=response.raw_headers)
    headers.append("WWW-Authenticate", 'Bearer realm="jaxserver"')
    headers.append("WWW-Authenticate", 'Basic realm="jaxserver", charset="UTF-8"')
    return response
