"""When an answer is wanted is heard whatever the user's own methods do."""

from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient

from jaxserver.ports.generator import SavableStream
from jaxserver.ports.handlers import Answer, ChatRequest, InstructRequest
from jaxserver.ports.types import GenerationRequest
from jaxserver.server import JAXServer
from tests.unit.tiny_server import Servers, tiny_servers

ASKED: list[GenerationRequest] = []


class GoesOn(JAXServer):
    """Answers as we do, and remembers what that asked for."""

    def forward_instruct(self, data: InstructRequest) -> Answer:
        return super().forward_instruct(data)

    def forward_chat(self, data: ChatRequest) -> Answer:
        return super().forward_chat(data)

    def generate(self, request: GenerationRequest) -> SavableStream:
        ASKED.append(request)
        return super().generate(request)


@pytest.fixture(scope="module")
def servers() -> Iterator[Servers]:
    with tiny_servers() as made:
        yield made


@pytest.mark.parametrize("route", ["/instruct", "/chat"])
@pytest.mark.parametrize("stream", [False, True])
def test_an_override_that_goes_on_to_ours_keeps_deadline_and_priority(
    servers: Servers, route: str, stream: bool
) -> None:
    server = servers.open(GoesOn)
    asked = {"prompt": "i", "max_new_tokens": 1, "stream": stream, "priority": -3}
    late = {**asked, "deadline_seconds": 1e-6}
    with TestClient(server.app(pages=False)) as client:
        assert "response" in client.post(route, json=asked).text
        assert "deadline" in client.post(route, json=late).text
    assert [request.priority for request in ASKED[-2:]] == [-3, -3]
