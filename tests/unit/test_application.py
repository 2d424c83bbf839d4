"""The application while its pages are still on their way."""

import threading
import time
from collections.abc import Iterator

import httpx
import pytest

from jaxserver import application
from jaxserver.application import PAGES
from jaxserver.ports.status import ServerState
from jaxserver.server import JAXServer
from tests import engines
from tests.unit.tiny_server import Servers, tiny_servers
from tests.waiting import eventually

mount = application._mount_pages
Opening = threading.Thread


class Slow:
    """Mounts the pages once it is let, or fails."""

    def __init__(self) -> None:
        self.may = threading.Event()
        self.error: Exception | None = None

    def __call__(self, *parts: object) -> None:
        assert self.may.wait(20)
        if self.error is not None:
            raise self.error
        mount(*parts)  # type: ignore[arg-type]


@pytest.fixture
def servers() -> Iterator[Servers]:
    engines.compiled(engines.NARROW)
    with tiny_servers() as made:
        yield made


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[Slow]:
    pages = Slow()
    monkeypatch.setattr(application, "_mount_pages", pages)
    yield pages
    pages.may.set()


def opening(server: JAXServer) -> tuple[Opening, list[Exception]]:
    """A thread that brings the model, and what went wrong in it."""
    errors: list[Exception] = []

    def run() -> None:
        try:
            server.open()
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, errors


def test_a_server_is_not_ready_before_its_pages_are_there(
    servers: Servers, slow: Slow
) -> None:
    server = servers.make()
    url = server.fire(pages_later=True)
    thread, _ = opening(server)
    assert eventually(lambda: server._host.engine is not None)

    assert httpx.get(f"{url}/health").status_code == 200
    assert httpx.get(f"{url}/status").json()["state"] == ServerState.COMPILING.value
    assert httpx.get(f"{url}/ready").status_code == 503
    asked = httpx.post(f"{url}/v1/completions", json={"prompt": "a"})
    assert (asked.status_code, "Retry-After" in asked.headers) == (503, True)
    slow.may.set()
    thread.join()
    assert httpx.get(f"{url}/ready").status_code == 200
    assert httpx.get(f"{url}/gradio_chat/").status_code == 200


@pytest.mark.parametrize("path", sorted(PAGES))
def test_who_asks_for_a_page_before_it_is_there_waits(
    servers: Servers, slow: Slow, path: str
) -> None:
    url = servers.make().fire(pages_later=True)
    threading.Timer(0.1, slow.may.set).start()
    began = time.monotonic()
    answer = httpx.get(f"{url}{path}", follow_redirects=True, timeout=20)

    assert answer.status_code == 200
    assert "gradio" in answer.text
    assert time.monotonic() - began > 0.05


def test_pages_that_cannot_be_mounted_fail_the_server(
    servers: Servers, slow: Slow
) -> None:
    server = servers.make()
    server.fire(pages_later=True)
    slow.error = ImportError("no gradio")
    slow.may.set()
    thread, errors = opening(server)
    thread.join()

    assert errors == [slow.error]
    assert server.snapshot().state is ServerState.FAILED


def test_the_pages_are_where_they_are_waited_for(servers: Servers) -> None:
    with_pages, without = (servers.make().app(pages=pages) for pages in (True, False))
    paths = {getattr(route, "path", None) for route in with_pages.routes}
    paths -= {getattr(route, "path", None) for route in without.routes}
    assert paths == PAGES
