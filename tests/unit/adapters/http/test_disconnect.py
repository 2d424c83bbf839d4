import asyncio
import threading
import time
from collections.abc import Mapping
from typing import Any

import pytest

from jaxserver.adapters.http.disconnect import ClientLeft, unless_client_leaves
from jaxserver.ports.handlers import CANCEL, ChatRequest, Handlers
from tests.fakes import ScriptedGenerator
from tests.unit.adapters.http.in_process import CHAT, TEXT, app_of
from tests.unit.adapters.http.real_server import send, serving
from tests.waiting import eventually

ROUTES = [
    ("/instruct", {"prompt": "p"}),
    ("/chat", {"prompt": "p"}),
    ("/v1/chat/completions", CHAT),
    ("/v1/completions", TEXT),
]


@pytest.mark.parametrize(("path", "body"), ROUTES)
@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_cancels_its_request(
    path: str, body: dict[str, Any], stream: bool
) -> None:
    generator = ScriptedGenerator("a", "b", "c", chunk_seconds=60)
    with serving(app_of(generator)) as server:
        client = send(server, path, {**body, "stream": stream})
        assert eventually(lambda: bool(generator.streams))
        assert not generator.streams[0].cancelled.is_set()
        client.close()
        assert eventually(generator.streams[0].cancelled.is_set)


def test_a_client_that_leaves_in_the_middle_of_a_stream_cancels_it() -> None:
    generator = ScriptedGenerator(*"x" * 1000, chunk_seconds=0.02)
    with serving(app_of(generator)) as server:
        client = send(server, "/chat", {"prompt": "p", "stream": True})
        assert client.recv(1)
        client.close()
        assert eventually(generator.streams[0].cancelled.is_set)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_tells_the_handler(stream: bool) -> None:
    started, told = threading.Event(), threading.Event()

    def forward_chat(request: ChatRequest) -> Mapping[str, object]:
        cancel = CANCEL.get()
        assert cancel is not None
        started.set()
        if cancel.wait(10):
            told.set()
        return {}

    with serving(app_of(handlers=Handlers(forward_chat=forward_chat))) as server:
        client = send(server, "/chat", {"prompt": "p", "stream": stream})
        assert started.wait(10)
        assert not told.is_set()
        client.close()
        assert told.wait(10)


def test_a_client_that_stays_gets_its_answer() -> None:
    generator = ScriptedGenerator("a", "b", chunk_seconds=0.05)
    with serving(app_of(generator)) as server:
        client = send(server, "/chat", {"prompt": "p"})
        assert client.recv(100).startswith(b"HTTP/1.1 200 OK")
        client.close()
    assert generator.streams[0].finished
    assert not generator.streams[0].cancelled.is_set()


def test_pieces_are_sent_as_they_come() -> None:
    generator = ScriptedGenerator("first", "second")
    generator.is_due = lambda number: number == 0
    with serving(app_of(generator)) as server:
        client = send(server, "/v1/completions", {**TEXT, "stream": True})
        read = b""
        while b"first" not in read:
            read += client.recv(1000)
        assert b"second" not in read
        assert not generator.streams[0].finished
        client.close()


def test_a_client_that_leaves_while_it_still_sends_is_no_fault(
    capfd: pytest.CaptureFixture[str],
) -> None:
    generator = ScriptedGenerator("x")
    with serving(app_of(generator)) as server:
        client = send(server, "/chat", {"prompt": "p"})
        assert client.recv(100)
        client.sendall(b"POST /chat HTTP/1.1\r\nHost: t\r\nContent-Length: 99\r\n\r\n{")
        time.sleep(0.05)
        client.close()
    assert len(generator.requests) == 1
    assert capfd.readouterr().err == ""


def test_work_is_over_when_the_client_has_left() -> None:
    events: list[str] = []

    async def work() -> None:
        events.append("begun")
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0)
            events.append("ended")

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(0)
        return {"type": "http.disconnect" if events else "http.request"}

    async def race() -> None:
        with pytest.raises(ClientLeft):
            await unless_client_leaves(receive, work())
        assert events == ["begun", "ended"]

    asyncio.run(race())


def test_an_error_of_the_work_is_raised() -> None:
    async def work() -> None:
        raise ZeroDivisionError

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(60)
        return {"type": "http.disconnect"}

    with pytest.raises(ZeroDivisionError):
        asyncio.run(unless_client_leaves(receive, work()))
