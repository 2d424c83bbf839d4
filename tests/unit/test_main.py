"""What the command does around the server."""

import gc
from typing import Any

import pytest

from jaxserver import __main__ as command
from jaxserver import serving
from jaxserver.ports.config import ServerConfig
from jaxserver.ports.progress import no_progress


def test_nothing_is_collected_before_the_server_is_ready(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    collects: list[bool] = []
    monkeypatch.setattr(serving, "serve", lambda *_: collects.append(gc.isenabled()))
    try:
        command._serve(ServerConfig(), no_progress, lambda url: None)
    finally:
        gc.enable()

    assert collects == [False]


@pytest.mark.parametrize("process_id", [0, 1])
def test_what_a_start_has_made_is_looked_through_once(
    monkeypatch: pytest.MonkeyPatch, process_id: int
) -> None:
    collects: list[bool] = []

    def note(*_: Any) -> None:
        collects.append(gc.isenabled() and gc.get_freeze_count() > 0)

    class Server:
        url = "http://here"

        def __init__(self, config: ServerConfig) -> None:
            self.open = self.fire = lambda *_, **__: None

        def is_ready(self) -> bool:
            return True

        def is_alive(self) -> bool:
            return True

        def end(self) -> bool:
            return True

    class Told:
        def wait(self, seconds: float) -> bool:
            return True

    names = ("join", "load_model", "compile_model", "with_processors", "_log_to_stderr")
    for name in names:
        monkeypatch.setattr(serving, name, lambda *_: None)
    monkeypatch.setattr(serving, "JAXServer", Server)
    monkeypatch.setattr(serving, "_stop_on_signals", lambda server: Told())
    monkeypatch.setattr(serving, "follow", note)
    several: dict[str, Any] = {"num_processes": 2, "coordinator": "here:1"}
    config = ServerConfig(process_id=process_id, **several)
    gc.disable()
    try:
        serving.serve(config, no_progress, note)
    finally:
        gc.enable()
        gc.unfreeze()

    assert collects == [True]
