"""A whole server that is full, that ends, or whose engine hangs, as clients see it."""

import concurrent.futures
import contextlib
import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient

from jaxserver import wiring
from jaxserver.adapters.engine import text
from jaxserver.adapters.engine.text import TextEngine
from jaxserver.adapters.http.serve import HttpServer
from jaxserver.ports.errors import EngineFailed
from jaxserver.ports.status import ServerState
from jaxserver.ports.types import GenerationRequest
from jaxserver.server import JAXServer
from tests import engines
from tests.unit.adapters.http.real_server import serving
from tests.unit.tiny_server import Servers, tiny_servers
from tests.waiting import eventually

LONG = {"prompt": "once", "max_tokens": 300, "ignore_eos": True, "seed": 1}
SHORT = {**LONG, "max_tokens": 8}
PROMPT_TOKENS = 5
SLOTS = engines.NARROW.slots
PATIENCE_SECONDS = 20.0
BOTH = (False, True)
Pool = concurrent.futures.ThreadPoolExecutor


@pytest.fixture(scope="module")
def servers() -> Iterator[Servers]:
    with tiny_servers() as made:
        yield made


class Asked:
    """A server behind a real port, and those who ask it at the same time."""

    def __init__(self, server: JAXServer, http: HttpServer, pool: Pool) -> None:
        self.server = server
        self._url = f"http://127.0.0.1:{http.port}"
        self._pool = pool

    @property
    def engine(self) -> TextEngine:
        assert self.server._host.engine is not None
        return self.server._host.engine

    def get(self, path: str) -> httpx.Response:
        return httpx.get(f"{self._url}{path}", timeout=PATIENCE_SECONDS)

    def post(self, body: dict[str, Any], path: str = "/v1/completions") -> Any:
        return httpx.post(f"{self._url}{path}", json=body, timeout=PATIENCE_SECONDS)

    def begin(
        self, body: dict[str, Any], path: str = "/v1/completions"
    ) -> "concurrent.futures.Future[httpx.Response]":
        """Asks in a thread, and returns when the engine has the request."""
        before = len(self.engine._answers)
        answer = self._pool.submit(self.post, body, path)
        assert eventually(lambda: len(self.engine._answers) > before)
        engines.tokenised(self.engine)
        return answer

    def end(self) -> "concurrent.futures.Future[bool]":
        """Has the server end meanwhile; from now on it drains."""
        ending = self._pool.submit(self.server.end)
        assert eventually(lambda: self.engine._is_draining)
        return ending


@contextlib.contextmanager
def asked(
    servers: Servers, patch: pytest.MonkeyPatch, gate: engines.Gate, **config: Any
) -> Iterator[Asked]:
    patch.setattr(wiring, "Device", engines.gated_device(gate))
    server = servers.open(**config)
    with (
        Pool(16) as pool,
        serving(server.app(pages=False)) as http,
        contextlib.ExitStack() as last,
    ):
        last.callback(gate.open)
        yield Asked(server, http, pool)


@pytest.fixture
def gate() -> engines.Gate:
    return engines.Gate()


def serve_slowly(asked: Asked) -> None:
    """As if a token took a second lately."""
    asked.engine._pace.note(time.monotonic() - 100.0, 100)


def in_slots(asked: Asked, gate: engines.Gate, count: int) -> bool:
    return gate.allow_until(lambda: asked.engine.loop.stats.slots_in_use == count)


def test_a_request_of_lower_priority_number_overtakes_those_that_wait(
    servers: Servers, monkeypatch: pytest.MonkeyPatch, gate: engines.Gate
) -> None:
    records = engines.Records()
    with asked(servers, monkeypatch, gate) as clients:
        engine = clients.engine
        engine._shell = engine._shell._replace(telemetry=records)
        running = [clients.begin(LONG) for _ in range(SLOTS - 1)]
        running.append(clients.begin(SHORT))
        assert in_slots(clients, gate, SLOTS)
        hurry = (5, 0, -3, 0)
        waiting = [clients.begin({**SHORT, "priority": number}) for number in hurry]
        gate.open()
        answers = [future.result() for future in [*running, *waiting]]

    assert {answer.status_code for answer in answers} == {200}
    ended = [record.request_id or 0 for record in records.all]
    order = [hurry[number - SLOTS] for number in ended if number >= SLOTS]
    assert order == [-3, 0, 0, 5]


@pytest.mark.parametrize("stream", BOTH)
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", LONG),
        ("/chat", {"prompt": "once", "max_new_tokens": 300, "seed": 1}),
    ],
)
def test_an_answer_that_is_late_is_a_504(
    servers: Servers,
    monkeypatch: pytest.MonkeyPatch,
    gate: engines.Gate,
    path: str,
    body: dict[str, Any],
    stream: bool,
) -> None:
    with asked(servers, monkeypatch, gate) as clients:
        gate.open()
        late = {**body, "stream": stream, "deadline_seconds": 0}
        answer = clients.post(late, path)

        assert answer.status_code == 504
        assert answer.json()["error"]["code"] == "deadline_exceeded"
        assert clients.post(SHORT).status_code == 200


def test_one_that_waits_is_late_too_and_one_with_time_is_not(
    servers: Servers, monkeypatch: pytest.MonkeyPatch, gate: engines.Gate
) -> None:
    with asked(servers, monkeypatch, gate) as clients:
        running = [clients.begin(SHORT) for _ in range(SLOTS)]
        late = clients.begin({**SHORT, "deadline_seconds": 0.001})
        early = clients.begin({**SHORT, "deadline_seconds": 60})
        gate.open()

        assert late.result().status_code == 504
        assert {future.result().status_code for future in [*running, early]} == {200}


def test_when_the_queue_is_full_it_is_said_when_to_come_again(
    servers: Servers, monkeypatch: pytest.MonkeyPatch, gate: engines.Gate
) -> None:
    with asked(servers, monkeypatch, gate, max_queue=2) as clients:
        open_now = [clients.begin(SHORT) for _ in range(SLOTS)]
        assert in_slots(clients, gate, SLOTS)
        open_now += [clients.begin(SHORT) for _ in range(2)]
        serve_slowly(clients)
        refused = clients.post(SHORT)
        gate.open()

        assert refused.status_code == 429
        assert refused.json()["error"]["code"] == "server_full"
        seconds = int(refused.headers["retry-after"])
        assert 2 * PROMPT_TOKENS <= seconds <= 2 * PROMPT_TOKENS + 2
        assert {future.result().status_code for future in open_now} == {200}
        assert clients.post(SHORT).status_code == 200


@pytest.mark.parametrize("stream", BOTH)
def test_where_many_tokens_wait_it_is_said_when_to_come_again(
    servers: Servers,
    monkeypatch: pytest.MonkeyPatch,
    gate: engines.Gate,
    stream: bool,
) -> None:
    with asked(servers, monkeypatch, gate, max_queue_tokens=30) as clients:
        open_now = [clients.begin(SHORT) for _ in range(SLOTS)]
        assert in_slots(clients, gate, SLOTS)
        open_now.append(clients.begin({**SHORT, "prompt": "x" * 19}))
        serve_slowly(clients)
        refused = clients.post({**SHORT, "prompt": "x" * 19, "stream": stream})
        gate.open()

        assert refused.status_code == 429
        assert 20 <= int(refused.headers["retry-after"]) <= 22
        assert {future.result().status_code for future in open_now} == {200}


def test_while_it_loads_it_is_said_when_to_come_again(servers: Servers) -> None:
    server = servers.make()
    with serving(server.app(pages=False)) as http:
        url = f"http://127.0.0.1:{http.port}"
        refused = httpx.post(f"{url}/v1/completions", json=SHORT)

    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "not_ready"
    assert int(refused.headers["retry-after"]) >= 1


def test_while_it_drains_what_comes_is_refused_and_what_was_there_ends(
    servers: Servers, monkeypatch: pytest.MonkeyPatch, gate: engines.Gate
) -> None:
    alone = TestClient(servers.open().app(pages=False)).post(
        "/v1/completions", json=LONG
    )
    expected = alone.json()["choices"]
    with asked(servers, monkeypatch, gate) as clients:
        open_now = [clients.begin(LONG) for _ in range(SLOTS + 2)]
        assert in_slots(clients, gate, SLOTS)
        serve_slowly(clients)
        ending = clients.end()
        refused = [clients.post({**SHORT, "stream": stream}) for stream in BOTH]
        gate.open()
        answers = [future.result() for future in open_now]

        assert [answer.status_code for answer in refused] == [503, 503]
        for answer in refused:
            assert answer.json()["error"]["code"] == "not_ready"
            assert 1 < int(answer.headers["retry-after"]) <= 60
        assert [answer.json()["choices"] for answer in answers] == [expected] * 6
        assert ending.result() is True


def test_what_is_not_finished_within_shutdown_timeout_fails(
    servers: Servers, monkeypatch: pytest.MonkeyPatch, gate: engines.Gate
) -> None:
    with asked(servers, monkeypatch, gate, shutdown_timeout=0.2) as clients:
        stream = clients.begin({**LONG, "stream": True})
        assert gate.allow_until(lambda: clients.engine.stats.prompts_served == 1)
        gate.allow(3)
        whole = clients.begin(LONG)
        commands = clients.engine.loop._commands
        before, began = commands.qsize(), time.monotonic()
        ending = clients.end()
        assert eventually(lambda: commands.qsize() > before)  # it is told to stop
        assert time.monotonic() - began > 0.2
        gate.open()

        assert whole.result().status_code == 500
        assert whole.result().json()["error"]["code"] == "engine_failed"
        assert error_at_the_end(stream.result())["code"] == "engine_failed"
        assert ending.result() is True


def error_at_the_end(response: httpx.Response) -> dict[str, Any]:
    """The last event of a stream that failed on its way."""
    assert response.status_code == 200
    *_, last = response.text.strip().split("\n\n")
    error: dict[str, Any] = json.loads(last.removeprefix("data: "))["error"]
    return error


def test_a_hanging_engine_fails_its_clients_and_the_program_goes_on(
    servers: Servers, monkeypatch: pytest.MonkeyPatch, gate: engines.Gate
) -> None:
    monkeypatch.setattr(text, "WATCH_SECONDS", 0.05)
    with asked(servers, monkeypatch, gate, watchdog_seconds=0.5) as clients:
        stream = clients.begin({**LONG, "stream": True})
        gate.allow(4)
        whole = clients.begin(LONG)

        assert error_at_the_end(stream.result())["code"] == "engine_failed"
        assert whole.result().status_code == 500
        assert clients.get("/health").status_code == 503
        assert clients.get("/ready").status_code == 503
        assert clients.get("/status").json()["state"] == "failed"
        refused = clients.post(SHORT)
        assert refused.status_code == 500
        assert refused.json()["error"]["code"] == "engine_failed"
        assert clients.server.snapshot().state is ServerState.FAILED
        with pytest.raises(EngineFailed):
            clients.server.generate(GenerationRequest(prompt="a"))
        began = time.monotonic()
        assert clients.server.end() is False
        assert time.monotonic() - began < 5

    monkeypatch.undo()
    other = servers.open()
    assert list(other.process("once", max_new_tokens=3, seed=1, ignore_eos=True))
