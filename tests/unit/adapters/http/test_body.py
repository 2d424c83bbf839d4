import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from jaxserver.adapters.http.body import parse
from jaxserver.adapters.http.errors import Refused
from jaxserver.adapters.http.original_wire import ChatBody
from tests.unit.adapters.http.in_process import app_of, call, post

APP = app_of()
LIMIT = 100
JSON = {"Content-Type": "application/json"}
ROUTES = [
    "/instruct",
    "/chat",
    "/v1/chat/completions",
    "/v1/completions",
    "/tokenize",
    "/detokenize",
]


def refusal(body: bytes) -> tuple[str | None, str]:
    with pytest.raises(Refused) as caught:
        parse(ChatBody, body)
    failure = caught.value.failure
    assert failure.status == 400
    return failure.field, failure.message


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[" * 20_000,
        b'{"prompt":' * 20_000,
        b'{"prompt": NaN}',
        b'{"prompt": "\xff"}',
        b'{"prompt": "\\ud800"}',
        b'{"\\udfff": 1}',
        b"\xef\xbb\xbf{}",
        b'{"seed": ' + b"9" * 5_000 + b"}",
        b"null",
        b"[]",
        b'"prompt"',
        "{}".encode("utf-16"),
    ],
    ids=range(14),
)
def test_what_is_no_json_object_is_refused_by_every_route(
    path: str, body: bytes
) -> None:
    response = call(APP, "POST", path, content=body, headers=JSON)
    assert response.status_code == 400
    assert set(response.json()) == {"error"}


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"{}", "prompt"),
        (b'{"prompt": 5}', "prompt"),
        (b'{"prompt": "p", "prompt": "q"}', "prompt"),
        (b'{"prompt": "p", "unknown": 1}', "unknown"),
        (b'{"prompt": "p", "temperature": NaN}', "temperature"),
        (b'{"prompt": "p", "temperature": Infinity}', "temperature"),
        (b'{"prompt": "p", "temperature": 1e999}', "temperature"),
        (b'{"prompt": "p", "temperature": true}', "temperature"),
        (b'{"prompt": "p", "temperature": -0.5}', "temperature"),
        (b'{"prompt": "p", "greedy": 1}', "greedy"),
        (b'{"prompt": "p", "max_new_tokens": 0}', "max_new_tokens"),
        (b'{"prompt": "p", "seed": -1}', "seed"),
        (b'{"prompt": "p", "seed": 18446744073709551616}', "seed"),
        (b'{"prompt": "p", "history": "x"}', "history"),
        (b'{"prompt": "p", "history": [["a"]]}', "history.0.1"),
        (b'{"prompt": "p", "history": [["a", "b"], ["a", null]]}', "history.1.1"),
        (b'{"prompt": "p", "history": [["a", "b", "c"]]}', "history.0"),
        (b'{"prompt": "p", "history": [{"a": "b"}]}', "history.0"),
        (b'{"prompt": "p", "stop": ["x", 1]}', "stop.1"),
    ],
)
def test_a_wrong_field_is_named(body: bytes, field: str) -> None:
    assert refusal(body)[0] == field


def test_a_refusal_never_repeats_what_was_sent() -> None:
    body = {"prompt": ["secret"], "history": "secret", "seed": "secret"}
    response = post(APP, "/chat", body)
    assert response.status_code == 400
    assert "secret" not in response.text


def test_a_refused_name_is_cut_to_a_bearable_length() -> None:
    field, message = refusal(json.dumps({"prompt": "p", "x" * 10_000: 1}).encode())
    assert field == "x" * 100
    assert len(message) < 200


def test_a_whole_number_may_be_written_with_a_point() -> None:
    body = parse(ChatBody, b'{"prompt": "p", "top_k": 4.0, "seed": 1e3}')
    assert (type(body.top_k), body.top_k, body.seed) == (int, 4, 1000)
    for wrong in (b"4.5", b"true", b'"4"', b"1e19.0", b"2e19"):
        refusal(b'{"prompt": "p", "seed": ' + wrong + b"}")


def test_arrays_become_pairs() -> None:
    body = b'{"prompt": "p", "history": [["a", "b"]], "stop": "x"}'
    parsed = parse(ChatBody, body)
    assert parsed.history == [("a", "b")]
    assert parsed.stop == ["x"]


def padded(length: int) -> bytes:
    return b'{"prompt": "p"}'.ljust(length)


async def in_pieces(body: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(body), 10):
        yield body[start : start + 10]


def send(content: Any) -> httpx.Response:
    app = app_of(max_body_bytes=LIMIT)
    return call(app, "POST", "/instruct", content=content, headers=JSON)


def test_a_body_may_be_as_large_as_the_limit() -> None:
    assert send(padded(LIMIT)).status_code == 200
    assert send(in_pieces(padded(LIMIT))).status_code == 200


def test_a_larger_body_is_refused_whether_or_not_it_says_its_length() -> None:
    for content in (padded(LIMIT + 1), in_pieces(padded(LIMIT + 1))):
        response = send(content)
        assert response.status_code == 413
        assert response.json()["error"]["field"] == "body"


def test_a_body_that_says_that_it_is_too_large_is_not_read() -> None:
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        raise AssertionError("read")

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/instruct",
        "query_string": b"",
        "headers": [(b"content-length", b"9" * 5_000)],
    }

    asyncio.run(app_of()(scope, receive, send))  # type: ignore[arg-type]  # ASGI

    assert sent[0]["status"] == 413


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content-Type": "application/json; charset=utf-8"}, 200),
        ({"Content-Type": "Application/JSON"}, 200),
        ({"Content-Type": "application/vnd.api+json"}, 200),
        ({}, 200),
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ({"Content-Type": ""}, 415),
        ({"Origin": "http://elsewhere"}, 415),
        ({"Origin": "http://elsewhere", "Content-Type": "application/json"}, 200),
    ],
)
def test_only_json_is_taken_so_that_no_foreign_page_can_post(
    headers: dict[str, str], status: int
) -> None:
    response = call(
        APP, "POST", "/instruct", content=b'{"prompt": "p"}', headers=headers
    )
    assert response.status_code == status
    if status == 415:
        assert response.json()["error"]["field"] == "Content-Type"
