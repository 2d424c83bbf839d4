"""What the command does around the server."""

import gc

import pytest

from jaxserver import __main__ as command
from jaxserver import serving
from jaxserver.adapters.cli.program import OnReady
from jaxserver.ports.config import ServerConfig
from jaxserver.ports.progress import no_progress


def test_nothing_is_collected_before_the_server_is_ready(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    collects: list[bool] = []

    def serve(config: object, progress: object, on_ready: OnReady) -> None:
        collects.append(gc.isenabled())
        on_ready("http://here")

    monkeypatch.setattr(serving, "serve", serve)
    try:
        note = collects.append
        command._serve(ServerConfig(), no_progress, lambda url: note(gc.isenabled()))
        assert gc.get_freeze_count() > 0
    finally:
        gc.enable()
        gc.unfreeze()

    assert collects == [False, True]
