"""OpenAI's routes take what is theirs, and answer in their form."""

import json
from typing import Any

import pytest

from jaxserver.ports.prompt import Rendered
from jaxserver.ports.types import SamplingParams
from tests.fakes import IDENTITY, ScriptedGenerator
from tests.unit.adapters.http.in_process import (
    BOTH,
    CHAT,
    TEXT,
    app_of,
    events,
    get,
    post,
    refused,
)


def test_a_chat_is_answered_in_openais_form() -> None:
    answer = post(app_of(), "/v1/chat/completions", CHAT).json()

    assert answer.pop("id").startswith("chatcmpl-")
    assert answer.pop("created") > 1_700_000_000
    assert answer == {
        "object": "chat.completion",
        "model": "fake",
        "system_fingerprint": IDENTITY.fingerprint(),
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hello", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {
            "prompt_tokens": 3,
            "completion_tokens": 2,
            "total_tokens": 5,
            "prompt_tokens_details": {"cached_tokens": 0},
        },
        "seed": 7,
    }


def test_a_text_is_continued_in_openais_form() -> None:
    answer = post(app_of(), "/v1/completions", TEXT).json()

    assert answer.pop("id").startswith("cmpl-")
    assert answer.pop("created") > 1_700_000_000
    assert answer == {
        "object": "text_completion",
        "model": "fake",
        "system_fingerprint": IDENTITY.fingerprint(),
        "choices": [
            {"index": 0, "text": "Hello", "logprobs": None, "finish_reason": "stop"}
        ],
        "usage": {
            "prompt_tokens": 3,
            "completion_tokens": 2,
            "total_tokens": 5,
            "prompt_tokens_details": {"cached_tokens": 0},
        },
        "seed": 7,
    }


@BOTH
def test_every_sampling_field_reaches_the_generator(
    path: str, body: dict[str, Any]
) -> None:
    generator = ScriptedGenerator("x")
    sampling = {
        "temperature": 0,
        "top_p": 0.5,
        "top_k": 3,
        "min_p": 0.25,
        "seed": 2**64 - 1,
        "stop": ["a", "b"],
        "stop_token_ids": [5],
        "ignore_eos": True,
        "presence_penalty": 0.5,
        "frequency_penalty": -0.5,
        "repetition_penalty": 1.5,
        "logit_bias": {"7": -100},
        "max_tokens": 4,
    }

    assert post(app_of(generator), path, {**body, **sampling}).is_success

    assert generator.requests[0].sampling == SamplingParams(
        temperature=0.0,
        top_p=0.5,
        top_k=3,
        min_p=0.25,
        seed=2**64 - 1,
        stop=("a", "b"),
        stop_token_ids=(5,),
        ignore_eos=True,
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        repetition_penalty=1.5,
        logit_bias={7: -100.0},
        max_new_tokens=4,
    )
    assert not generator.requests[0].truncate


@BOTH
def test_null_equals_absent(path: str, body: dict[str, Any]) -> None:
    generator = ScriptedGenerator("x")
    names = get(app_of(), "/openapi.json").json()["paths"][path]["post"]["requestBody"]
    fields = names["content"]["application/json"]["schema"]["properties"]

    answer = post(app_of(generator), path, {**dict.fromkeys(fields), **body})

    assert answer.is_success, answer.text
    assert generator.requests[0].sampling == SamplingParams()


def test_max_completion_tokens_is_max_tokens() -> None:
    generator = ScriptedGenerator("x")
    app = app_of(generator)

    post(app, "/v1/chat/completions", {**CHAT, "max_completion_tokens": 5})
    both = {"max_completion_tokens": 5, "max_tokens": 6}
    response = post(app, "/v1/chat/completions", {**CHAT, **both})

    assert generator.requests[0].sampling.max_new_tokens == 5
    refused(response, "max_tokens")


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({}, None),
        ({"logprobs": False, "top_logprobs": 0}, None),
        ({"logprobs": True}, 0),
        ({"logprobs": True, "top_logprobs": 4}, 4),
    ],
)
def test_chat_asks_for_logprobs_by_two_fields(
    asked: dict[str, Any], expected: int | None
) -> None:
    generator = ScriptedGenerator("x")
    post(app_of(generator), "/v1/chat/completions", {**CHAT, **asked})
    assert generator.requests[0].sampling.logprobs == expected


@pytest.mark.parametrize(
    "content", ["hi", [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]]
)
def test_content_is_text_or_parts_of_text(content: object) -> None:
    generator = ScriptedGenerator("x")
    messages = [
        {"role": "developer", "content": "d"},
        {"role": "user", "content": content},
        {"role": "assistant", "content": "a", "refusal": None, "tool_calls": []},
        {"role": "user", "content": "u"},
    ]

    post(app_of(generator), "/v1/chat/completions", {"messages": messages})

    rendered = "system: d\nuser: hi\nassistant: a\nuser: u\nassistant: "
    assert generator.requests[0].prompt == rendered
    assert isinstance(generator.requests[0].prompt, Rendered)


@pytest.mark.parametrize(
    ("prompt", "taken"),
    [
        ("a", "a"),
        ("", ""),
        (["a"], "a"),
        ([1, 2], (1, 2)),
        ([[1, 2]], (1, 2)),
        ([7], (7,)),
        ([7.0], (7,)),
    ],
)
def test_a_prompt_is_a_text_or_ids(prompt: object, taken: object) -> None:
    generator = ScriptedGenerator("x")
    post(app_of(generator), "/v1/completions", {"prompt": prompt})
    assert generator.requests[0].prompt == taken
    assert not isinstance(generator.requests[0].prompt, Rendered)


NEUTRAL = {
    "n": 1,
    "best_of": 1,
    "store": False,
    "service_tier": "auto",
    "user": "u",
    "metadata": {"k": "v"},
    "safety_identifier": "s",
    "prompt_cache_key": "p",
}
NEUTRAL_CHAT = {
    "tools": [],
    "tool_choice": "auto",
    "functions": [],
    "function_call": "none",
    "parallel_tool_calls": True,
    "response_format": {"type": "text"},
    "modalities": ["text"],
    "audio": None,
}
NEUTRAL_TEXT = {"echo": False, "suffix": None}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {**CHAT, **NEUTRAL, **NEUTRAL_CHAT}),
        ("/v1/completions", {**TEXT, **NEUTRAL, **NEUTRAL_TEXT}),
    ],
)
def test_neutral_fields_and_labels_pass(path: str, body: dict[str, Any]) -> None:
    generator = ScriptedGenerator("x")
    assert post(app_of(generator), path, body).is_success
    assert generator.requests[0].sampling == SamplingParams()


@BOTH
def test_without_a_status_any_model_is_the_model(
    path: str, body: dict[str, Any]
) -> None:
    app = app_of(status=None)
    assert post(app, path, {**body, "model": "any"}).json()["model"] == "any"
    assert post(app, path, body).json()["model"] == "jaxserver"
    assert get(app, "/v1/models").status_code == 404


def test_the_served_model_is_listed() -> None:
    app = app_of()
    (model,) = get(app, "/v1/models").json()["data"]
    assert model["id"] == "fake"
    assert get(app, "/v1/models/fake").json() == model
    refused(get(app, "/v1/models/a/b"), "model", 404)


@BOTH
@pytest.mark.parametrize("usage", [True, False])
def test_a_streams_last_events_are_finish_reason_and_usage(
    path: str, body: dict[str, Any], usage: bool
) -> None:
    options = {"stream": True, "stream_options": {"include_usage": usage}}

    response = post(app_of(), path, {**body, **options})

    *written, done = events(response)
    assert done == "[DONE]"
    chunks = [json.loads(event) for event in written]
    if usage:
        counts = chunks.pop()
        assert counts["choices"] == []
        assert counts["usage"]["total_tokens"] == 5
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
    assert reasons == [None] * (len(chunks) - 1) + ["stop"]
    assert chunks[-1]["seed"] == 7
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert all(("usage" in chunk) == usage for chunk in chunks)
