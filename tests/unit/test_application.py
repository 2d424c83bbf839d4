"""The application whose pages come when somebody asks for one."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from starlette.testclient import TestClient

from jaxserver import application
from jaxserver.application import PAGES
from tests import engines
from tests.unit.tiny_server import Servers, tiny_servers

mount = application._mount_pages


class Slow:
    """Mounts the pages once it is let, or fails."""

    def __init__(self) -> None:
        self.has_begun, self.may = threading.Event(), threading.Event()
        self.error: Exception | None = None
        self.calls = 0

    def __call__(self, *parts: object) -> None:
        self.has_begun.set()
        self.calls += 1
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


def test_a_server_is_ready_before_its_pages_are_there(
    servers: Servers, slow: Slow
) -> None:
    server = servers.make()
    url = server.fire(pages_later=True)
    server.open()

    assert httpx.get(f"{url}/ready").status_code == 200
    assert not slow.has_begun.is_set()
    slow.may.set()
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


def test_pages_that_cannot_be_mounted_are_an_error_of_their_own(
    servers: Servers, slow: Slow
) -> None:
    server = servers.make()
    url = server.fire(pages_later=True)
    server.open()
    slow.error = ImportError("no gradio")
    slow.may.set()

    for _ in range(2):
        assert httpx.get(f"{url}/gradio_chat/").status_code == 500
    assert httpx.get(f"{url}/ready").status_code == 200


def test_pages_are_mounted_once_for_all_who_ask(servers: Servers, slow: Slow) -> None:
    url = servers.make().fire(pages_later=True)
    threading.Timer(0.2, slow.may.set).start()
    with ThreadPoolExecutor(4) as pool:
        paths = [f"{url}/gradio_chat/"] * 4
        answers = list(pool.map(lambda path: httpx.get(path, timeout=20), paths))
    assert [answer.status_code for answer in answers] == [200] * 4
    assert slow.calls == 1


def test_who_may_not_see_a_page_does_not_bring_it(servers: Servers, slow: Slow) -> None:
    url = servers.make(api_key="secret").fire(pages_later=True)
    assert httpx.get(f"{url}/gradio_chat/").status_code == 401
    assert slow.calls == 0


def test_no_page_is_brought_once_the_end_has_come(servers: Servers, slow: Slow) -> None:
    server = servers.make()
    app = server._app(later=True)
    server.open()
    server._host.drain(1.0)
    with TestClient(app) as client:
        assert client.get("/gradio_chat/").status_code == 404
    assert slow.calls == 0


def test_the_pages_are_where_they_are_waited_for(servers: Servers) -> None:
    with_pages, without = (servers.make().app(pages=pages) for pages in (True, False))
    paths = {getattr(route, "path", None) for route in with_pages.routes}
    paths -= {getattr(route, "path", None) for route in without.routes}
    assert paths == PAGES
