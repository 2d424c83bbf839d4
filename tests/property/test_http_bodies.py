"""Whatever a client sends, it gets JSON that says what was wrong, or an answer."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from jaxserver.adapters.http.app import create_app
from jaxserver.adapters.http.body import parse
from jaxserver.adapters.http.openai_wire import ChatCompletionBody, CompletionBody
from jaxserver.adapters.http.original_wire import ChatBody, InstructBody
from jaxserver.ports.handlers import ChatRequest, InstructRequest
from jaxserver.ports.types import MAX_SEED
from tests.fakes import ByteFormatter, ByteTokenizer, FixedStatus, ScriptedGenerator

PATHS = [
    "/instruct",
    "/chat",
    "/v1/chat/completions",
    "/v1/completions",
    "/tokenize",
    "/detokenize",
]
APP = create_app(
    ScriptedGenerator("Hel", "lo"),
    ByteFormatter(),
    tokenizer=ByteTokenizer(),
    status=FixedStatus(),
)
# Lone surrogates too, which JSON can write down but no encoding can send.
ANY_TEXT = st.text(st.characters(), max_size=20)
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | ANY_TEXT,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(ANY_TEXT, inner, max_size=4)
    ),
    max_leaves=8,
)
FIELDS = sorted(
    {*InstructBody.model_fields, *ChatBody.model_fields}
    | {*ChatCompletionBody.model_fields, *CompletionBody.model_fields}
    | {"text", "tokens", "add_special_tokens"}
)
NEARLY = st.fixed_dictionaries(
    {},
    optional={
        "prompt": ANY_TEXT | ANY_JSON,
        "text": ANY_TEXT,
        "tokens": st.lists(st.integers(-1, 300)),
        "messages": st.lists(
            st.fixed_dictionaries(
                {"role": st.sampled_from(["system", "user", "assistant", "tool"])},
                optional={"content": ANY_TEXT | ANY_JSON},
            )
        ),
        "history": st.lists(st.lists(ANY_TEXT, max_size=3)),
    },
)
BODIES = ANY_JSON | st.builds(
    lambda nearly, more: {**more, **nearly},
    NEARLY,
    st.dictionaries(st.sampled_from(FIELDS), ANY_JSON, max_size=3),
)


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


def answer(loop: asyncio.Runner, path: str, content: bytes) -> httpx.Response:
    async def post() -> httpx.Response:
        # What the application raises is raised here, and fails the test.
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(APP), base_url="http://test"
        ) as client:
            headers = {"Content-Type": "application/json"}
            return await client.post(path, content=content, headers=headers)

    return loop.run(post())


def check_form(path: str, response: httpx.Response) -> None:
    assert response.status_code < 500
    if response.status_code == 200:
        is_stream = response.headers["content-type"].startswith("text/event-stream")
        assert is_stream or isinstance(response.json(), dict)
        return
    error = response.json()["error"]
    openai_keys = {"message", "type", "param", "code"}
    our_keys = {"code", "message", "field"}
    assert set(error) == (openai_keys if path.startswith("/v1/") else our_keys)
    assert error["param" if path.startswith("/v1/") else "field"]


@pytest.mark.parametrize("path", PATHS)
@given(body=BODIES)
@example(body={"prompt": "p", "stream": True})
@example(body={"messages": [{"role": "user", "content": "\ud800"}]})
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_json_is_answered_or_refused_in_the_routes_form(
    loop: asyncio.Runner, path: str, body: Any
) -> None:
    check_form(path, answer(loop, path, json.dumps(body).encode()))


@pytest.mark.parametrize("path", PATHS)
@given(content=st.binary())
@settings(deadline=None)
def test_any_bytes_are_refused_in_the_routes_form(
    loop: asyncio.Runner, path: str, content: bytes
) -> None:
    check_form(path, answer(loop, path, content))


TEXT = st.text(st.characters(exclude_categories=["Cs"]))
SAMPLING = {
    "temperature": st.none() | st.floats(0, 100),
    "greedy": st.none() | st.booleans(),
    "max_new_tokens": st.none() | st.integers(1, 2**31 - 1),
    "top_p": st.none() | st.floats(0, 1),
    "top_k": st.none() | st.integers(0, 2**31 - 1),
    "seed": st.none() | st.integers(0, MAX_SEED),
    "stop": st.none() | st.lists(TEXT.filter(bool), max_size=16),
    "stream": st.none() | st.booleans(),
    "system": st.none() | TEXT,
}
INSTRUCTIONS = st.fixed_dictionaries({"prompt": TEXT}, optional=SAMPLING)
PAIRS = st.lists(st.lists(TEXT, min_size=2, max_size=2))
TURNS = st.fixed_dictionaries(
    {"prompt": TEXT}, optional={**SAMPLING, "history": st.none() | PAIRS}
)


@given(fields=INSTRUCTIONS)
@settings(deadline=None)
def test_an_instruction_is_parsed_to_what_was_written(fields: dict[str, Any]) -> None:
    parsed = parse(InstructBody, json.dumps(fields).encode())
    assert parsed.to_request() == InstructRequest(**fields)
    assert parse(InstructBody, parsed.model_dump_json().encode()) == parsed


@given(fields=TURNS)
@settings(deadline=None)
def test_a_turn_is_parsed_to_what_was_written(fields: dict[str, Any]) -> None:
    parsed = parse(ChatBody, json.dumps(fields).encode())
    assert parsed.to_request() == ChatRequest(**fields)
    assert parse(ChatBody, parsed.model_dump_json().encode()) == parsed
