import re
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.responses import PlainTextResponse

from jaxserver.ports.errors import EngineFailed, ServerFull
from jaxserver.ports.handlers import Handlers
from jaxserver.ports.origin import ORIGIN, UNKNOWN, Origin
from jaxserver.ports.types import GenerationRequest
from tests.fakes import ScriptedGenerator
from tests.unit.adapters.http.in_process import (
    BOTH,
    CHAT,
    app_of,
    call,
    events,
    failing,
    get,
    post,
)

FRESH = re.compile(r"[0-9a-f]{32}")
HEADER = "X-Request-Id"
NAMED = {HEADER: "mine-1"}
ROUTES = [
    ("GET", "/status", None, 200),
    ("GET", "/health", None, 200),
    ("GET", "/ready", None, 200),
    ("GET", "/metrics", None, 200),
    ("GET", "/openapi.json", None, 200),
    ("GET", "/v1/models", None, 200),
    ("GET", "/v1/models/fake", None, 200),
    ("GET", "/v1/models/other", None, 404),
    ("POST", "/instruct", {"prompt": "p"}, 200),
    ("POST", "/instruct", {"prompt": "p", "stream": True}, 200),
    ("POST", "/instruct", {"prompt": 1}, 400),
    ("POST", "/chat", {"prompt": "p"}, 200),
    ("POST", "/chat", {"prompt": "p", "stream": True}, 200),
    ("POST", "/v1/chat/completions", CHAT, 200),
    ("POST", "/v1/chat/completions", {**CHAT, "stream": True}, 200),
    ("POST", "/v1/chat/completions", {}, 400),
    ("POST", "/v1/completions", {"prompt": "p"}, 200),
    ("POST", "/v1/completions", {"prompt": "p", "stream": True}, 200),
    ("POST", "/tokenize", {"text": "a"}, 200),
    ("POST", "/detokenize", {"tokens": [97]}, 200),
    ("POST", "/profile", {"seconds": 0}, 400),
    ("GET", "/instruct", None, 405),
    ("GET", "/nowhere", None, 404),
    ("GET", "/page/x", None, 200),
]


def with_page(**options: Any) -> FastAPI:
    app = app_of(**options)
    app.mount("/page", PlainTextResponse("page"))
    return app


@pytest.mark.parametrize(("method", "path", "body", "status"), ROUTES)
def test_every_route_sends_the_name_back(
    method: str, path: str, body: object, status: int
) -> None:
    response = call(with_page(), method, path, json=body, headers=NAMED)
    assert response.status_code == status
    assert response.headers.get_list(HEADER) == ["mine-1"]
    unnamed = call(with_page(), method, path, json=body)
    assert FRESH.fullmatch(unnamed.headers[HEADER])


def test_a_client_without_the_key_gets_it_back_too() -> None:
    response = get(app_of(api_key="key"), "/status", headers=NAMED)
    assert (response.status_code, response.headers[HEADER]) == (401, "mine-1")


@BOTH
@pytest.mark.parametrize(
    ("error", "status"),
    [
        (lambda: ServerFull("full", 1), 429),
        (lambda: EngineFailed("broken"), 500),
        (lambda: OSError("nobody foresaw"), 500),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
def test_errors_send_it_back(
    path: str, body: dict[str, Any], error: Any, status: int, stream: bool
) -> None:
    app = app_of(failing(error))
    response = post(app, path, {**body, "stream": stream}, headers=NAMED)
    assert response.status_code == status
    assert response.headers.get_list(HEADER) == ["mine-1"]


def test_openais_answers_keep_their_own_id() -> None:
    response = post(app_of(), "/v1/chat/completions", CHAT, headers=NAMED)
    assert response.json()["id"].startswith("chatcmpl-")
    streamed = post(
        app_of(), "/v1/chat/completions", {**CHAT, "stream": True}, headers=NAMED
    )
    assert streamed.headers[HEADER] == "mine-1"
    assert '"id":"chatcmpl-' in events(streamed)[0]


@pytest.mark.parametrize("name", ["a", "~", "a b:c/{}", "x" * 128])
def test_printable_ascii_is_taken_as_it_is(name: str) -> None:
    assert get(app_of(), "/health", headers={HEADER: name}).headers[HEADER] == name


@pytest.mark.parametrize(
    "name", [b"", b" ", b" a", b"x" * 129, b"a\tb", b"a\x7f", "é".encode(), b"\xff"]
)
def test_anything_else_is_replaced_by_a_fresh_name(name: bytes) -> None:
    headers = [(HEADER.encode(), name)]
    names = [get(app_of(), "/health", headers=headers).headers[HEADER] for _ in "ab"]
    assert all(FRESH.fullmatch(name) for name in names)
    assert names[0] != names[1]


@pytest.mark.parametrize("path", ["/instruct", "/chat", "/v1/completions"])
@pytest.mark.parametrize("stream", [True, False])
def test_the_engine_is_told_who_asked(path: str, stream: bool) -> None:
    generator = ScriptedGenerator("a")
    told = {**NAMED, "traceparent": "00-trace-span-01"}
    body = {"prompt": "p", "stream": stream}
    post(app_of(generator), path, body, headers=told)
    post(app_of(generator), path, body, headers={"traceparent": "x" * 129})

    first, second = (request.origin for request in generator.requests)
    assert first == Origin("mine-1", "00-trace-span-01")
    assert second.traceparent is None
    assert FRESH.fullmatch(second.request_id or "")
    assert ORIGIN.get() == UNKNOWN


def test_a_handler_of_the_users_own_knows_who_asked() -> None:
    heard: list[Origin] = []

    def forward(request: object) -> dict[str, object]:
        heard.append(ORIGIN.get())
        return {}

    app = app_of(handlers=Handlers(forward_chat=forward))
    post(app, "/chat", {"prompt": "p"}, headers=NAMED)
    assert heard == [Origin("mine-1")]


def test_who_asked_makes_no_other_request_of_it() -> None:
    asked = GenerationRequest(prompt="p", origin=Origin("a"))
    assert asked == GenerationRequest(prompt="p", origin=Origin("b"))


def test_an_application_mounted_in_another_names_its_requests() -> None:
    outer = FastAPI()
    outer.mount("/inner", app_of(failing(lambda: OSError("nobody foresaw"))))
    for path in ("/health", "/nowhere"):
        assert get(outer, f"/inner{path}", headers=NAMED).headers[HEADER] == "mine-1"
    response: httpx.Response = post(
        outer, "/inner/instruct", {"prompt": "p"}, headers=NAMED
    )
    assert (response.status_code, response.headers[HEADER]) == (500, "mine-1")
