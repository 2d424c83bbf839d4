import json
from typing import Any

import pytest

from jaxserver.ports.errors import EngineFailed
from jaxserver.ports.types import Chunk, GenerationRequest
from tests.fakes import ScriptedGenerator, ScriptedStream
from tests.unit.adapters.http.in_process import CHAT, TEXT, app_of, events, post


class BreakingStream(ScriptedStream):
    """Fails after its first chunk."""

    error: Exception

    async def __anext__(self) -> Chunk:
        if len(self._chunks) == 1:
            raise self.error
        return await super().__anext__()


class BreakingGenerator(ScriptedGenerator):
    def __init__(self, error: Exception) -> None:
        super().__init__("Hel", "lo")
        self.error = error

    def generate(self, request: GenerationRequest) -> ScriptedStream:
        stream = super().generate(request)
        breaking = BreakingStream(stream._chunks, 0)
        breaking.error = self.error
        self.streams.append(breaking)
        return breaking


ROUTES = [
    ("/instruct", {"prompt": "p"}, "field"),
    ("/v1/chat/completions", CHAT, "param"),
    ("/v1/completions", TEXT, "param"),
]


@pytest.mark.parametrize(("path", "body", "field"), ROUTES)
@pytest.mark.parametrize(
    ("error", "code"),
    [
        (EngineFailed("broken"), "engine_failed"),
        (ZeroDivisionError("inner"), "internal_error"),
    ],
)
def test_an_error_in_the_middle_is_the_last_event(
    path: str, body: dict[str, Any], field: str, error: Exception, code: str
) -> None:
    generator = BreakingGenerator(error)

    response = post(app_of(generator), path, {**body, "stream": True})

    assert response.status_code == 200
    *before, last = events(response)
    assert "Hel" in "".join(before)
    written = json.loads(last)["error"]
    assert written["code"] == code
    assert field in written
    assert "inner" not in response.text
    assert generator.streams[-1].cancelled.is_set()


def test_an_unknown_error_in_the_middle_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = app_of(BreakingGenerator(ZeroDivisionError("inner")))
    post(app, "/instruct", {"prompt": "p", "stream": True})
    (record,) = caplog.records
    assert record.exc_info is not None
    assert record.exc_info[0] is ZeroDivisionError


def test_an_error_in_the_middle_of_a_whole_answer_has_its_own_status() -> None:
    app = app_of(BreakingGenerator(EngineFailed("broken")))
    assert post(app, "/v1/completions", TEXT).status_code == 500
