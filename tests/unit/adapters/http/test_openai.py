import json
from typing import Any

import httpx
import pytest

from jaxserver.ports.errors import (
    EngineFailed,
    InvalidRequest,
    NotReady,
    PromptTooLong,
    ServerFull,
)
from jaxserver.ports.status import ServerState
from jaxserver.ports.types import SamplingParams
from tests.fakes import ScriptedGenerator
from tests.unit.adapters.http.in_process import (
    CHAT,
    TEXT,
    app_of,
    events,
    failing,
    get,
    post,
)

APP = app_of()
ROUTES = [("/v1/chat/completions", CHAT), ("/v1/completions", TEXT)]
BOTH = pytest.mark.parametrize(("path", "body"), ROUTES)


def refused(response: httpx.Response, field: str | None, status: int = 400) -> Any:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"] == field
    return error


def test_a_chat_is_answered_in_openais_form() -> None:
    answer = post(app_of(), "/v1/chat/completions", CHAT).json()

    assert answer.pop("id").startswith("chatcmpl-")
    assert answer.pop("created") > 1_700_000_000
    assert answer == {
        "object": "chat.completion",
        "model": "fake",
        "system_fingerprint": None,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hello", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
        "seed": 7,
    }


def test_a_text_is_continued_in_openais_form() -> None:
    answer = post(app_of(), "/v1/completions", TEXT).json()

    assert answer.pop("id").startswith("cmpl-")
    assert answer.pop("created") > 1_700_000_000
    assert answer == {
        "object": "text_completion",
        "model": "fake",
        "system_fingerprint": None,
        "choices": [
            {"index": 0, "text": "Hello", "logprobs": None, "finish_reason": "stop"}
        ],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
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
    assert generator.requests[0].is_rendered


@pytest.mark.parametrize(
    ("prompt", "taken"),
    [
        ("a", "a"),
        ("", ""),
        (["a"], "a"),
        ([1, 2], (1, 2)),
        ([[1, 2]], (1, 2)),
        ([7], (7,)),
    ],
)
def test_a_prompt_is_a_text_or_ids(prompt: object, taken: object) -> None:
    generator = ScriptedGenerator("x")
    post(app_of(generator), "/v1/completions", {"prompt": prompt})
    assert generator.requests[0].prompt == taken
    assert not generator.requests[0].is_rendered


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
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n", 2),
        ("n", "1"),
        ("best_of", 3),
        ("store", True),
        ("service_tier", "flex"),
        ("guided_json", {}),
        ("temperature", -1),
        ("temperature", "0.5"),
        ("temperature", True),
        ("temperature", 101),
        ("top_p", 1.5),
        ("top_k", -1),
        ("top_k", 1.5),
        ("min_p", -0.5),
        ("seed", -1),
        ("seed", 2**64),
        ("seed", 1.5),
        ("stop", 5),
        ("stop", ""),
        ("stop", ["x"] * 17),
        ("max_tokens", 0),
        ("max_tokens", -5),
        ("stop_token_ids", [0] * 17),
        ("ignore_eos", 1),
        ("repetition_penalty", 0),
        ("presence_penalty", 101),
        ("frequency_penalty", [1]),
        ("logit_bias", [1]),
        ("logit_bias", {str(i): 0 for i in range(1025)}),
        ("stream", "yes"),
        ("stream_options", {"include_usage": True}),
        ("user", 5),
        ("metadata", {"a": 1}),
        ("model", 5),
        ("logprobs", "x"),
    ],
)
def test_what_is_not_served_is_refused_by_name(
    path: str, body: dict[str, Any], field: str, value: object
) -> None:
    response = post(APP, path, {**body, field: value})
    assert response.status_code == 400
    assert response.json()["error"]["param"].split(".")[0] == field


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"response_format": {"type": "json_object"}}, "response_format.type"),
        ({"modalities": ["audio"]}, "modalities.0"),
        ({"audio": {"voice": "x"}}, "audio"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs"),
        ({"logprobs": 1}, "logprobs"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": None}]}, "messages.0.content"),
        ({"messages": [{**CHAT["messages"][0], "name": "n"}]}, "messages.0.name"),
        ({"messages": [{**CHAT["messages"][0], "x": "n"}]}, "messages.0.x"),
        ({"messages": "hi"}, "messages"),
        ({"echo": False}, "echo"),
        (
            {"stream": True, "stream_options": {"include_obfuscation": True}},
            "stream_options.include_obfuscation",
        ),
    ],
)
def test_a_chats_own_fields_are_refused_by_name(
    more: dict[str, Any], field: str
) -> None:
    refused(post(APP, "/v1/chat/completions", {**CHAT, **more}), field)


@pytest.mark.parametrize(
    "part", [{"type": "image_url", "image_url": {}}, {"type": "text"}, "text", None]
)
def test_content_that_is_not_text_is_refused(part: object) -> None:
    messages = [{"role": "user", "content": [part]}]
    response = post(app_of(), "/v1/chat/completions", {"messages": messages})
    refused(response, "messages.0.content")


@pytest.mark.parametrize(
    "prompt",
    [None, 5, [], [[]], ["a", "b"], [["a"]], [[1], [2]], [-1], [True], [2**31], [1.5]],
)
def test_a_prompt_of_another_kind_is_refused(prompt: object) -> None:
    refused(post(APP, "/v1/completions", {"prompt": prompt}), "prompt")


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"echo": True}, "echo"),
        ({"suffix": "x"}, "suffix"),
        ({"logprobs": True}, "logprobs"),
        ({"logprobs": 21}, "logprobs"),
        ({"logit_bias": {"07": 1}}, "logit_bias.07"),
        ({"logit_bias": {"x": 1}}, "logit_bias.x"),
        ({"logit_bias": {"7": 101}}, "logit_bias.7"),
    ],
)
def test_a_completions_own_fields_are_refused_by_name(
    more: dict[str, Any], field: str
) -> None:
    refused(post(APP, "/v1/completions", {**TEXT, **more}), field)


@BOTH
def test_an_unknown_model_is_not_found(path: str, body: dict[str, Any]) -> None:
    app = app_of()
    error = refused(post(app, path, {**body, "model": "other"}), "model", 404)
    assert error["code"] == "model_not_found"
    assert post(app, path, {**body, "model": "fake"}).json()["model"] == "fake"


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


def test_no_model_is_listed_before_it_is_there() -> None:
    response = get(app_of(state=ServerState.LOADING), "/v1/models")
    assert int(response.headers["retry-after"]) > 0
    error = refused(response, None, 503)
    assert (error["type"], error["code"]) == ("server_error", "not_ready")


@BOTH
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("error", "status", "kind", "code"),
    [
        (ServerFull("full", 2), 429, "rate_limit_error", "server_full"),
        (NotReady("loading", 2), 503, "server_error", "not_ready"),
        (EngineFailed("broken"), 500, "server_error", "engine_failed"),
        (ZeroDivisionError("inner"), 500, "server_error", "internal_error"),
        (PromptTooLong(9, 5), 400, "invalid_request_error", "context_length_exceeded"),
    ],
)
def test_an_error_before_the_first_chunk_has_its_own_status(
    path: str,
    body: dict[str, Any],
    stream: bool,
    error: Exception,
    status: int,
    kind: str,
    code: str,
) -> None:
    app = app_of(failing(lambda: error))

    response = post(app, path, {**body, "stream": stream})

    assert response.status_code == status
    written = response.json()["error"]
    assert (written["type"], written["code"]) == (kind, code)
    assert "inner" not in response.text
    assert ("retry-after" in response.headers) == (status in {429, 503})


@BOTH
def test_a_generators_refusal_names_the_field_as_the_route_calls_it(
    path: str, body: dict[str, Any]
) -> None:
    app = app_of(failing(lambda: InvalidRequest("max_new_tokens", "9", "at most 8")))
    error = refused(post(app, path, body), "max_tokens")
    assert error["message"] == "max_tokens: allowed is at most 8"


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


def test_a_formatters_refusal_is_a_bad_request() -> None:
    two_users = {"messages": CHAT["messages"] * 2}
    error = refused(post(app_of(), "/v1/chat/completions", two_users), "messages")
    assert error["code"] == "unsupported_messages"
