"""Calls an application without a network, for the tests of this folder."""

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from jaxserver.adapters.http.app import create_app
from jaxserver.ports.status import ServerState
from tests.fakes import (
    ByteFormatter,
    ByteTokenizer,
    FixedMetrics,
    FixedStatus,
    ScriptedGenerator,
    ScriptedProfiler,
)

CHAT = {"messages": [{"role": "user", "content": "hi"}]}
TEXT = {"prompt": "hi"}
BOTH = pytest.mark.parametrize(
    ("path", "body"), [("/v1/chat/completions", CHAT), ("/v1/completions", TEXT)]
)
"""For tests of both of OpenAI's routes."""


def app_of(
    generator: ScriptedGenerator | None = None,
    state: ServerState = ServerState.READY,
    **options: Any,
) -> FastAPI:
    """An application over fakes, with every route."""
    return create_app(
        generator or ScriptedGenerator("Hel", "lo"),
        ByteFormatter(),
        **{
            "tokenizer": ByteTokenizer(),
            "status": FixedStatus(state),
            "metrics": FixedMetrics(),
            "profiler": ScriptedProfiler(),
            **options,
        },
    )


def call(app: FastAPI, method: str, path: str, **options: Any) -> httpx.Response:
    async def answer() -> httpx.Response:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(
            transport=transport, base_url="http://test"
        ) as client:
            return await client.request(method, path, **options)

    return asyncio.run(answer())


def post(app: FastAPI, path: str, body: object, **options: Any) -> httpx.Response:
    return call(app, "POST", path, json=body, **options)


def get(app: FastAPI, path: str, **options: Any) -> httpx.Response:
    return call(app, "GET", path, **options)


def events(response: httpx.Response) -> list[str]:
    """The data of every server-sent event."""
    return [block.removeprefix("data: ") for block in response.text.split("\n\n")[:-1]]


def failing(error: Callable[[], Exception]) -> ScriptedGenerator:
    generator = ScriptedGenerator("Hel", "lo")
    generator.fail = error
    return generator


def refused(response: httpx.Response, field: str | None, status: int = 400) -> Any:
    """The error of a refusal in OpenAI's form, which has to name the field."""
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"] == field
    return error
