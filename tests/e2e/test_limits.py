"""What a server does with clients that leave, with too many, and with nonsense."""

import contextlib
import json
import socket
import time
from collections.abc import Callable
from urllib.parse import urlsplit

import httpx
import pytest

from jaxserver import JAXServer

pytestmark = pytest.mark.model
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
ROUTES = {
    COMPLETIONS: {"prompt": "Count to a thousand.", "max_tokens": 900},
    CHAT: {
        "messages": [{"role": "user", "content": "Count to a thousand."}],
        "max_tokens": 900,
        "ignore_eos": True,
    },
    "/instruct": {"prompt": "Count to a thousand.", "max_new_tokens": 900},
    "/chat": {"prompt": "Count to a thousand.", "max_new_tokens": 900},
}


def wait_until(is_so: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.005)


def slots_in_use(server: JAXServer) -> int:
    return server.snapshot().slots_in_use


def post(url: str, route: str, body: dict[str, object]) -> socket.socket:
    """Sends a request without waiting for its answer."""
    address = urlsplit(url)
    connection = socket.create_connection((address.hostname, address.port))
    content = json.dumps(body).encode()
    head = (
        f"POST {route} HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(content)}\r\n\r\n"
    )
    connection.sendall(head.encode() + content)
    return connection


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("route", ROUTES)
def test_a_client_that_leaves_frees_its_slot_within_two_dispatches(
    loaded_server: JAXServer, server_url: str, route: str, stream: bool
) -> None:
    wait_until(lambda: slots_in_use(loaded_server) == 0)
    connection = post(server_url, route, {**ROUTES[route], "stream": stream})
    wait_until(lambda: slots_in_use(loaded_server) == 1)
    engine = loaded_server._engine
    assert engine is not None
    first = engine.loop.stats.dispatches
    wait_until(lambda: engine.loop.stats.dispatches > first)

    connection.close()
    before = engine.loop.stats.dispatches
    wait_until(lambda: slots_in_use(loaded_server) == 0)

    # One more than two: a dispatch may begin before the close is seen at all.
    assert engine.loop.stats.dispatches - before <= 3


def test_a_full_queue_answers_at_once_and_recovers(
    loaded_server: JAXServer, server_url: str
) -> None:
    wait_until(lambda: slots_in_use(loaded_server) == 0)
    slots, waiting = 16, loaded_server.config.max_queue
    with contextlib.ExitStack() as connections:
        for _ in range(slots + waiting):
            connections.enter_context(post(server_url, CHAT, ROUTES[CHAT]))
        wait_until(lambda: loaded_server.snapshot().queue_length == waiting)
        began = time.monotonic()
        refused = httpx.post(f"{server_url}{CHAT}", json=ROUTES[CHAT])
        seconds = time.monotonic() - began

    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) >= 1
    assert seconds < 2
    wait_until(lambda: slots_in_use(loaded_server) == 0)
    answer = httpx.post(f"{server_url}/instruct", json={"prompt": "Hi", "greedy": True})
    assert answer.status_code == 200


USER = [{"role": "user", "content": "Hi"}]
WRONG_FIELDS: dict[str, tuple[str, dict[str, object]]] = {
    "top_p": (CHAT, {"messages": USER, "top_p": "1"}),
    "colour": (CHAT, {"messages": USER, "colour": 1}),
    "temperature": (CHAT, {"messages": USER, "temperature": -1}),
    "messages": (CHAT, {"messages": []}),
    "role": (CHAT, {"messages": [{"role": "king", "content": "x"}]}),
    "prompt": (COMPLETIONS, {"prompt": [49152]}),
    "prompt has": (COMPLETIONS, {"prompt": "a b " * 4000}),
    "history": ("/chat", {"prompt": "x", "history": [["a"]]}),
    "history.0": ("/chat", {"prompt": "x", "history": [[1, 2]]}),
}
WRONG_BODIES: dict[str, tuple[bytes, int]] = {
    "bad JSON": (b'{"messages": [', 400),
    "invalid UTF-8": (b'{"messages": "\xff\xfe"}', 400),
    "nested brackets": (b"[" * 20_000, 400),
    "NaN": (b'{"messages": [{"role": "user", "content": "x"}], "top_p": NaN}', 400),
    "50 MB": (b" " * 50_000_000, 413),
}


def refused(url: str, route: str, content: bytes) -> tuple[int, dict[str, str]]:
    headers = {"content-type": "application/json"}
    answer = httpx.post(f"{url}{route}", content=content, headers=headers, timeout=60)
    return answer.status_code, answer.json()["error"]


@pytest.mark.parametrize("field", WRONG_FIELDS)
def test_a_wrong_field_is_refused_by_name(
    loaded_server: JAXServer, server_url: str, field: str
) -> None:
    route, body = WRONG_FIELDS[field]

    status, error = refused(server_url, route, json.dumps(body).encode())

    assert status == 400
    assert field in f"{error.get('param')} {error.get('field')} {error['message']}"
    assert loaded_server.is_ready()


@pytest.mark.parametrize("kind", WRONG_BODIES)
def test_a_body_that_cannot_be_read_is_refused(
    loaded_server: JAXServer, server_url: str, kind: str
) -> None:
    content, wanted = WRONG_BODIES[kind]

    status, error = refused(server_url, CHAT, content)

    assert status == wanted
    assert error["message"]
    assert loaded_server.is_ready()


def test_an_unknown_model_is_not_found(server_url: str) -> None:
    body = {"messages": USER, "model": "gpt-9"}

    status, error = refused(server_url, CHAT, json.dumps(body).encode())

    assert status == 404
    assert error["param"] == "model"


def test_it_goes_on_after_all_that(server_url: str) -> None:
    answer = httpx.post(
        f"{server_url}/instruct",
        json={"prompt": "What is the capital of France?", "greedy": True},
        timeout=60,
    )

    assert "Paris" in answer.json()["response"]
