"""A heartbeat lives for a while, and no longer than its client."""

import asyncio
from collections.abc import MutableMapping
from typing import Any

import pytest

from jaxserver.adapters.gradio_ui.heartbeat import ShortHeartbeats

Message = MutableMapping[str, Any]


async def _other(scope: Message, receive: object, send: Any) -> None:
    await send({"type": "other"})


def answer(path: str, life_seconds: float, *received: str) -> list[Message]:
    sent: list[Message] = []
    left = list(received)

    async def receive() -> Message:
        if not left:
            await asyncio.sleep(60)
        return {"type": left.pop(0)}

    async def send(message: Message) -> None:
        sent.append(message)

    app = ShortHeartbeats(_other, life_seconds)
    asyncio.run(app({"type": "http", "path": path}, receive, send))
    return sent


@pytest.mark.parametrize(
    ("life_seconds", "received"),
    [(0.02, ["http.request"]), (60, ["http.request", "http.disconnect"])],
)
def test_a_heartbeat_ends(life_seconds: float, received: list[str]) -> None:
    path = "/gradio_chat/gradio_api/heartbeat/abc"
    start, alive, end = answer(path, life_seconds, *received)
    assert start["status"] == 200
    assert (alive["body"], alive["more_body"]) == (b"data: ALIVE\n\n", True)
    assert not end.get("more_body")


def test_other_paths_go_on_to_the_application() -> None:
    assert answer("/gradio_chat/config", 60) == [{"type": "other"}]
