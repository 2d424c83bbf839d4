"""How `serve` ends when something will not."""

import threading
from typing import Any

import pytest

from jaxserver import serving
from jaxserver.ports.config import ServerConfig
from jaxserver.ports.progress import no_progress


class Ended(Exception):
    """In place of the end of the process."""


class Server:
    """One whose last step ends, or does not."""

    url = "http://127.0.0.1:1"
    has_ended = True

    def __init__(self, config: ServerConfig) -> None:
        self.config = config

    def fire(self, *, pages_later: bool) -> None:
        return None

    def open(self, progress: Any) -> None:
        return None

    def is_alive(self) -> bool:
        return True

    def end(self) -> bool:
        return self.has_ended


@pytest.fixture(autouse=True)
def _no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def end(code: int) -> None:
        raise Ended(code)

    told = threading.Event()
    told.set()
    monkeypatch.setattr(serving, "JAXServer", Server)
    monkeypatch.setattr(serving, "_stop_on_signals", lambda server: told)
    monkeypatch.setattr(serving, "_log_to_stderr", lambda: None)
    monkeypatch.setattr("os._exit", end)


def test_told_to_stop_it_returns(monkeypatch: pytest.MonkeyPatch) -> None:
    urls: list[str] = []
    serving.serve(ServerConfig(), no_progress, urls.append)
    assert urls == [Server.url]


def test_a_step_that_does_not_end_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Server, "has_ended", False)
    with pytest.raises(Ended, match="1"):
        serving.serve(ServerConfig(), no_progress, lambda url: None)
    assert caplog.messages == ["error: a step does not end; the server ends without it"]
