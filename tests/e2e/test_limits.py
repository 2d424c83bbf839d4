"""What a server does with clients that leave, with too many, and with nonsense."""

import contextlib
import json
import socket
import threading
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from jaxserver import JAXServer
from tests.engines import Records
from tests.waiting import eventually

pytestmark = pytest.mark.model
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
ENDLESS = f"Write: {'a ' * 20}and so on without end."
"""The model's likeliest answer to it does not end within 900 tokens."""

ROUTES: dict[str, dict[str, object]] = {
    COMPLETIONS: {"prompt": ENDLESS, "max_tokens": 900, "ignore_eos": True, "seed": 1},
    CHAT: {
        "messages": [{"role": "user", "content": ENDLESS}],
        "max_tokens": 900,
        "ignore_eos": True,
        "seed": 1,
    },
    "/instruct": {"prompt": ENDLESS, "max_new_tokens": 900, "greedy": True},
    "/chat": {"prompt": ENDLESS, "max_new_tokens": 900, "greedy": True},
}


def uses_slots(server: JAXServer, count: int) -> bool:
    return eventually(lambda: server.snapshot().slots_in_use == count, 60)


def has_waiting(server: JAXServer, count: int) -> bool:
    return eventually(lambda: server.snapshot().queue_length == count, 60)


def is_idle(server: JAXServer) -> bool:
    return uses_slots(server, 0) and has_waiting(server, 0)


class Watch:
    """What an engine does before and after it is told to cancel, to the dispatch."""

    def __init__(self, server: JAXServer, patch: pytest.MonkeyPatch) -> None:
        assert server._host.engine is not None
        self._loop = server._host.engine.loop
        self._dispatch, self._cancel = self._loop._dispatch, self._loop.cancel
        self._one_by_one = threading.RLock()
        self.dispatches_at_cancel: int | None = None
        self.records = Records()
        patch.setattr(self._loop, "_dispatch", self._dispatch_alone)
        patch.setattr(self._loop, "cancel", self._note_and_cancel)
        shell = server._host.engine._shell._replace(telemetry=self.records)
        patch.setattr(server._host.engine, "_shell", shell)

    @property
    def dispatches(self) -> int:
        return self._loop.stats.dispatches

    def _dispatch_alone(self, *what: Any) -> None:
        with self._one_by_one:
            self._dispatch(*what)

    def _note_and_cancel(self, request_id: int) -> None:
        with self._one_by_one:  # or dispatches might come between the two
            if self.dispatches_at_cancel is None:
                self.dispatches_at_cancel = self.dispatches
            self._cancel(request_id)


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
    loaded_server: JAXServer,
    server_url: str,
    route: str,
    stream: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert is_idle(loaded_server)
    watch = Watch(loaded_server, monkeypatch)
    connection = post(server_url, route, {**ROUTES[route], "stream": stream})
    assert uses_slots(loaded_server, 1)
    first = watch.dispatches
    assert eventually(lambda: watch.dispatches > first, 60)
    assert watch.dispatches_at_cancel is None

    connection.close()
    assert is_idle(loaded_server)

    assert [record.outcome for record in watch.records.all] == ["cancelled"]
    assert watch.dispatches_at_cancel is not None
    assert watch.dispatches - watch.dispatches_at_cancel <= 2


def test_a_full_queue_answers_at_once_and_recovers(
    loaded_server: JAXServer, server_url: str
) -> None:
    assert is_idle(loaded_server)
    slots, waiting = 16, loaded_server.config.max_queue
    with contextlib.ExitStack() as connections:
        for _ in range(slots + waiting):
            connections.enter_context(post(server_url, CHAT, ROUTES[CHAT]))
        assert uses_slots(loaded_server, slots)
        assert has_waiting(loaded_server, waiting)
        refused = httpx.post(f"{server_url}{CHAT}", json=ROUTES[CHAT], timeout=60)
        still_waiting = loaded_server.snapshot().queue_length

    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) >= 1
    assert still_waiting == waiting  # it was refused before any place was free
    assert is_idle(loaded_server)
    body = {"prompt": "Hi", "greedy": True, "max_new_tokens": 4}
    answer = httpx.post(f"{server_url}/instruct", json=body, timeout=60)
    assert answer.status_code == 200


USER = [{"role": "user", "content": "Hi"}]
KING = [{"role": "king", "content": "x"}]
WRONG_FIELDS: list[tuple[str, str, dict[str, object]]] = [
    ("top_p", CHAT, {"messages": USER, "top_p": "1"}),
    ("colour", CHAT, {"messages": USER, "colour": 1}),
    ("temperature", CHAT, {"messages": USER, "temperature": -1}),
    ("messages", CHAT, {"messages": []}),
    ("messages.0.role", CHAT, {"messages": KING}),
    ("prompt", COMPLETIONS, {"prompt": [49152]}),
    ("prompt", COMPLETIONS, {"prompt": "a b " * 4000}),
    ("history.0.1", "/chat", {"prompt": "x", "history": [["a"]]}),
    ("history.0.0", "/chat", {"prompt": "x", "history": [[1, 2]]}),
]
WRONG_BODIES: dict[str, tuple[bytes, int, str]] = {
    "bad JSON": (b'{"messages": [', 400, "body"),
    "invalid UTF-8": (b'{"messages": "\xff\xfe"}', 400, "body"),
    "nested brackets": (b"[" * 20_000, 400, "body"),
    "NaN": (
        b'{"messages": [{"role": "user", "content": "x"}], "top_p": NaN}',
        400,
        "top_p",
    ),
    "50 MB": (b" " * 50_000_000, 413, "body"),
}


def refused(url: str, route: str, content: bytes) -> tuple[int, dict[str, str]]:
    headers = {"content-type": "application/json"}
    answer = httpx.post(f"{url}{route}", content=content, headers=headers, timeout=60)
    return answer.status_code, answer.json()["error"]


@pytest.mark.parametrize(("field", "route", "body"), WRONG_FIELDS)
def test_a_wrong_field_is_refused_by_name(
    loaded_server: JAXServer,
    server_url: str,
    field: str,
    route: str,
    body: dict[str, object],
) -> None:
    status, error = refused(server_url, route, json.dumps(body).encode())

    assert status == 400
    assert error["param" if route.startswith("/v1/") else "field"] == field
    assert error["message"]
    assert loaded_server.is_ready()


@pytest.mark.parametrize("kind", WRONG_BODIES)
def test_a_body_that_cannot_be_read_is_refused(
    loaded_server: JAXServer, server_url: str, kind: str
) -> None:
    content, wanted, field = WRONG_BODIES[kind]

    status, error = refused(server_url, CHAT, content)

    assert status == wanted
    assert error["param"] == field
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
