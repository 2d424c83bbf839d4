import contextlib
import http.client
import json
import socket
from collections.abc import AsyncIterator

import fastapi
import pytest
import requests

from jaxserver.adapters.http.serve import HttpServer, listen
from jaxserver.ports.errors import InvalidConfig
from tests.fakes import ScriptedGenerator
from tests.unit.adapters.http.in_process import app_of
from tests.unit.adapters.http.real_server import send, serving
from tests.waiting import eventually


def test_it_listens_when_start_returns_and_not_after_stop() -> None:
    server = HttpServer(app_of(), "127.0.0.1", 0)
    assert server.port == 0
    server.start()
    url = f"http://127.0.0.1:{server.port}/health"
    assert requests.get(url, timeout=10).json() == {"status": "ok"}
    server.stop()
    server.stop()
    with pytest.raises(requests.ConnectionError):
        requests.get(url, timeout=10)


def test_the_originals_client_code_works() -> None:
    with serving(app_of()) as server:
        content = {
            "prompt": "p",
            "history": [["a", "b"]],
            "temperature": 0.1,
            "greedy": False,
        }
        response = requests.post(
            url=f"http://127.0.0.1:{server.port}/chat", json=content, timeout=10
        ).json()
    assert response["response"] == "Hello"
    assert response["input"] == "user: a\nassistant: b\nuser: p\nassistant: "


def test_a_taken_port_is_a_clear_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InvalidConfig, match=f"port: got {port} .*in use") as caught:
            HttpServer(app_of(), "127.0.0.1", port).start()
    assert "a free port of 127.0.0.1" in caught.value.allowed


@pytest.mark.parametrize("host", ["192.0.2.1", "no.such.host.invalid"])
def test_a_host_that_is_not_here_is_a_clear_error(host: str) -> None:
    with pytest.raises(InvalidConfig, match="host: got"):
        listen(host, 0)


def test_it_listens_on_ipv6() -> None:
    with listen("::1", 0) as listening:
        assert listening.family is socket.AF_INET6


def test_an_application_that_cannot_start_is_an_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    @contextlib.asynccontextmanager
    async def lifespan(_: fastapi.FastAPI) -> AsyncIterator[None]:
        raise ZeroDivisionError
        yield

    server = HttpServer(fastapi.FastAPI(lifespan=lifespan), "127.0.0.1", 0)
    with pytest.raises(RuntimeError, match="failed at its start"):
        server.start()


def test_a_stop_lets_an_answer_end() -> None:
    generator = ScriptedGenerator("a", "b", chunk_seconds=0.2)
    with serving(app_of(generator)) as server:
        generator.is_due = lambda number: server._server.should_exit
        client = send(server, "/chat", {"prompt": "p"})
        assert eventually(lambda: bool(generator.streams))
        server.stop(30)
        answer = http.client.HTTPResponse(client)
        answer.begin()
        assert json.loads(answer.read())["response"] == "ab"
        client.close()


@pytest.mark.parametrize("chunked", [True, False])
def test_a_body_of_50_mb_is_refused_and_the_server_goes_on(chunked: bool) -> None:
    pieces = [b" " * 2**20] * 50
    with serving(app_of()) as server:
        url = f"http://127.0.0.1:{server.port}"
        response = requests.post(
            f"{url}/chat",
            data=iter(pieces) if chunked else b"".join(pieces),
            headers={"Content-Type": "application/json"},
            timeout=30,
        )
        assert response.status_code == 413
        assert response.json()["error"]["code"] == "body_too_large"
        assert requests.get(f"{url}/health", timeout=10).ok
