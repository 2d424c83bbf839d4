"""What is sent of a streamed answer, byte by byte but for ids and times."""

import asyncio
import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from jaxserver.adapters.http.app import create_app
from tests.fakes import ByteFormatter, FixedStatus, ScriptedGenerator

FOLDER = Path(__file__).parent / "sse"
MESSAGES = [{"role": "user", "content": "hi"}]
TRANSCRIPTS: dict[str, tuple[str, dict[str, Any]]] = {
    "instruct": ("/instruct", {"prompt": "p", "system": "s"}),
    "chat": ("/chat", {"prompt": "p", "history": [["a", "b"]]}),
    "chat_completions": ("/v1/chat/completions", {"messages": MESSAGES}),
    "chat_completions_with_all": (
        "/v1/chat/completions",
        {
            "messages": MESSAGES,
            "logprobs": True,
            "top_logprobs": 1,
            "stream_options": {"include_usage": True},
        },
    ),
    "completions": ("/v1/completions", {"prompt": [1, 2]}),
    "completions_with_all": (
        "/v1/completions",
        {
            "prompt": "p",
            "logprobs": 1,
            "stream_options": {"include_usage": True},
        },
    ),
}


def transcript(path: str, body: dict[str, Any]) -> str:
    app = create_app(
        ScriptedGenerator("Hé", "l", '"\n'), ByteFormatter(), status=FixedStatus()
    )

    async def post() -> str:
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://test"
        ) as client:
            response = await client.post(path, json={**body, "stream": True})
            assert response.status_code == 200
            return response.content.decode()

    text = re.sub(r'"(chatcmpl|cmpl)-[0-9a-f]{32}"', r'"\1-ID"', asyncio.run(post()))
    return re.sub(r'"created":\d+', '"created":0', text)


@pytest.mark.parametrize("name", TRANSCRIPTS)
def test_a_stream_is_as_it_was(name: str, pytestconfig: pytest.Config) -> None:
    file = FOLDER / f"{name}.txt"
    got = transcript(*TRANSCRIPTS[name])
    if pytestconfig.getoption("--update-golden", default=False):
        file.write_bytes(got.encode())
    assert got == file.read_bytes().decode()
