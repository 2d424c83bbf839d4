"""A client that leaves, whenever it does, stops its work and frees what it held."""

import contextlib
import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from jaxserver import wiring
from jaxserver.adapters.engine.text import TextEngine
from jaxserver.adapters.http import serve
from jaxserver.adapters.http.serve import HttpServer
from jaxserver.server import JAXServer
from tests import engines
from tests.unit.adapters.http.real_server import send, serving
from tests.unit.tiny_server import Servers, tiny_servers
from tests.waiting import eventually

PATH = "/v1/completions"
ROOM_BYTES = 4096
SLOTS = engines.NARROW.slots
LONG = {"prompt": "once", "max_tokens": 300, "ignore_eos": True, "seed": 1}
PROMPT = {**LONG, "prompt": "x" * 250}
"""Four chunks of a narrow engine to prefill."""


class Served:
    """A server whose steps wait for leave, its port, and what came of requests."""

    def __init__(self, server: JAXServer, http: HttpServer, gate: engines.Gate) -> None:
        self.server, self.http, self.gate = server, http, gate
        self.records = engines.Records()
        shell = self.engine._shell._replace(telemetry=self.records)
        self.engine._shell = shell

    @property
    def engine(self) -> TextEngine:
        assert self.server._host.engine is not None
        return self.server._host.engine

    def ask(self, body: dict[str, Any], room_bytes: int | None = None) -> socket.socket:
        """Asks, and returns when the engine has the request."""
        before = len(self.engine._answers)
        client = send(self.http, PATH, body, room_bytes)
        assert eventually(lambda: len(self.engine._answers) > before)
        engines.tokenised(self.engine)
        return client

    def leave(self, client: socket.socket) -> None:
        """Closes the connection, and returns when the engine is told to cancel."""
        commands = self.engine.loop._commands.qsize()
        client.close()
        assert eventually(lambda: self.engine.loop._commands.qsize() > commands)

    def is_free(self) -> bool:
        """Nobody holds a slot or a page, waits, or is being answered."""

        def holds_nothing() -> bool:
            now = self.server.snapshot()
            held = (now.slots_in_use, now.pages_used, now.queue_length)
            return held == (0, 0, 0) and not self.http._server.server_state.tasks

        return eventually(holds_nothing)

    def outcomes(self) -> list[str]:
        return [record.outcome for record in self.records.all]


@pytest.fixture(scope="module")
def servers() -> Iterator[Servers]:
    with tiny_servers() as made:
        yield made


@pytest.fixture
def served(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    gate = engines.Gate()
    monkeypatch.setattr(wiring, "Device", engines.gated_device(gate))
    server = servers.open(max_queue=4)
    with serving(server.app(pages=False)) as http, contextlib.ExitStack() as last:
        last.callback(gate.open)
        yield Served(server, http, gate)


STREAMS = pytest.mark.parametrize("stream", [False, True])


@STREAMS
def test_while_it_waits(served: Served, stream: bool) -> None:
    loop = served.engine.loop
    running = [served.ask(LONG) for _ in range(SLOTS)]
    assert served.gate.allow_until(lambda: loop.stats.slots_in_use == SLOTS)
    waiting = served.ask({**LONG, "stream": stream})
    assert served.gate.allow_until(lambda: loop.stats.queue_length == 1)
    before = loop.stats.dispatches
    served.leave(waiting)
    served.gate.allow(2)
    assert eventually(lambda: loop.stats.queue_length == 0)
    assert loop.stats.dispatches - before <= 2
    assert loop.stats.slots_in_use == SLOTS

    served.gate.open()
    assert eventually(lambda: len(served.records.all) == SLOTS + 1)
    assert served.outcomes() == ["cancelled"] + ["length"] * SLOTS
    for client in running:
        client.close()
    assert served.is_free()


@STREAMS
@pytest.mark.parametrize(
    ("body", "steps"),
    [(PROMPT, 0), (PROMPT, 3), (LONG, 5)],
    ids=["first of its prefill", "prefill", "decode"],
)
def test_while_it_is_worked_on(
    served: Served, body: dict[str, Any], steps: int, stream: bool
) -> None:
    client = served.ask({**body, "stream": stream})
    served.gate.allow(steps)
    loop = served.engine.loop
    assert eventually(lambda: loop.stats.dispatches == steps + 1)
    assert eventually(lambda: served.server.snapshot().pages_used > 0)
    served.leave(client)
    before = loop.stats.dispatches
    served.gate.open()

    assert served.is_free()
    assert served.outcomes() == ["cancelled"]
    assert loop.stats.dispatches - before <= 2


def test_while_a_stream_is_written(served: Served) -> None:
    client = served.ask({**LONG, "stream": True})
    served.gate.allow(5)
    read = b""
    while b"data: " not in read:
        read += client.recv(1000)
    loop = served.engine.loop
    assert eventually(lambda: loop.stats.dispatches == 6)
    served.leave(client)
    served.gate.open()

    assert served.is_free()
    assert served.outcomes() == ["cancelled"]
    assert loop.stats.dispatches <= 6 + 2


@STREAMS
def test_while_an_answer_is_written_that_it_does_not_read(
    servers: Servers, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    def listen_with_little_room(host: str, port: int) -> socket.socket:
        listening = listen(host, port)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, ROOM_BYTES)
        return listening

    listen = serve.listen
    monkeypatch.setattr(serve, "listen", listen_with_little_room)
    server = servers.open()
    gate = engines.Gate()
    with serving(server.app(pages=False)) as http:
        served = Served(server, http, gate)
        client = served.ask({**LONG, "stream": stream, "logprobs": 5}, ROOM_BYTES)
        assert client.recv(20) == b"HTTP/1.1 200 OK\r\ndat"
        assert eventually(lambda: served.outcomes() == ["length"])
        connections = http._server.server_state.connections
        assert eventually(lambda: num_unsent(connections) > 0)
        client.close()

        assert served.is_free()
        assert eventually(lambda: not connections)
        again = served.ask({**LONG, "max_tokens": 2})
        assert json.loads(again.recv(10_000).split(b"\r\n\r\n")[1])["choices"]
        again.close()


def num_unsent(connections: set[Any]) -> int:
    """Bytes that wait in this process for room in the sockets."""
    return sum(one.transport.get_write_buffer_size() for one in tuple(connections))
