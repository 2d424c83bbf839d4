import asyncio
import base64
from typing import Any

import pytest
from fastapi import FastAPI, WebSocket
from starlette.responses import PlainTextResponse

from tests.unit.adapters.http.in_process import app_of, call, get

KEY = "pässwört:with colon"
PATHS = [
    ("GET", "/status"),
    ("GET", "/metrics"),
    ("POST", "/profile"),
    ("GET", "/v1/models"),
    ("GET", "/openapi.json"),
    ("GET", "/nowhere"),
    ("GET", "/health/"),
    ("GET", "/page/x"),
    ("GET", "/page/health"),
    ("POST", "/instruct"),
    ("POST", "/v1/completions"),
    ("POST", "/tokenize"),
]


def bearer(key: bytes) -> dict[str, Any]:
    return {"headers": [(b"authorization", b"Bearer " + key)]}


def basic(key: bytes) -> dict[str, Any]:
    credentials = base64.b64encode(b"anyone:" + key)
    return {"headers": [(b"authorization", b"Basic " + credentials)]}


def guarded() -> FastAPI:
    """An application that something was mounted into after it was made."""
    app = app_of(api_key=KEY)
    app.mount("/page", PlainTextResponse("page"))
    return app


@pytest.mark.parametrize(("method", "path"), PATHS)
def test_every_route_and_page_wants_the_key(method: str, path: str) -> None:
    response = call(guarded(), method, path)
    assert response.status_code == 401
    challenges = response.headers.get_list("www-authenticate")
    assert [challenge.split()[0] for challenge in challenges] == ["Bearer", "Basic"]
    error = response.json()["error"]
    assert error["code"] == "invalid_api_key"
    assert ("param" in error) == path.startswith("/v1/")


@pytest.mark.parametrize("path", ["/health", "/ready"])
def test_health_and_ready_want_none(path: str) -> None:
    assert get(guarded(), path).status_code == 200


@pytest.mark.parametrize("show", [bearer, basic])
def test_the_key_opens_everything(show: Any) -> None:
    shown = show(KEY.encode())
    assert get(guarded(), "/status", **shown).status_code == 200
    assert get(guarded(), "/page/x", **shown).text == "page"


@pytest.mark.parametrize(
    "authorization",
    [
        b"",
        b"Bearer",
        b"Bearer ",
        b"Bearer wrong",
        b"Bearer \xff\xfe",
        b"Basic",
        b"Basic !!!",
        b"Basic a",
        b"Basic " + base64.b64encode(b"no colon"),
        b"Basic " + base64.b64encode(b"user:wrong"),
        b"Digest " + KEY.encode(),
        KEY.encode(),
    ],
)
def test_anything_else_does_not(authorization: bytes) -> None:
    headers = [(b"authorization", authorization)]
    assert call(guarded(), "GET", "/status", headers=headers).status_code == 401


def test_an_empty_key_opens_nothing() -> None:
    app = app_of(api_key="")
    assert get(app, "/status").status_code == 401
    assert get(app, "/status", **bearer(b"")).status_code == 401


def test_without_a_key_nothing_is_asked() -> None:
    assert get(app_of(), "/status").status_code == 200


def websocket_answer(headers: list[tuple[bytes, bytes]]) -> str:
    app = guarded()

    @app.websocket("/socket")
    async def accept(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.close()

    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {
        "type": "websocket",
        "path": "/socket",
        "query_string": b"",
        "headers": headers,
        "subprotocols": [],
    }
    asyncio.run(app(scope, receive, send))  # type: ignore[arg-type]  # ASGI
    return str(sent[0]["type"])


def test_a_websocket_wants_the_key_too() -> None:
    assert websocket_answer([]) == "websocket.close"
    shown = [(b"authorization", b"Bearer " + KEY.encode())]
    assert websocket_answer(shown) == "websocket.accept"


def test_an_application_mounted_in_another_guards_itself() -> None:
    outer = FastAPI()
    outer.mount("/inner", guarded())
    assert get(outer, "/inner/health").status_code == 200
    assert get(outer, "/inner/v1/models").json()["error"]["param"] == "Authorization"
