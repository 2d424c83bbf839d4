"""What OpenAI's routes do not do they refuse, in OpenAI's form."""

from typing import Any

import pytest

from jaxserver.ports.errors import (
    EngineFailed,
    InvalidRequest,
    NotReady,
    PromptTooLong,
    ServerFull,
)
from jaxserver.ports.status import ServerState
from tests.unit.adapters.http.in_process import (
    BOTH,
    CHAT,
    TEXT,
    app_of,
    failing,
    get,
    post,
    refused,
)

APP = app_of()


@BOTH
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n", 0),
        ("n", 129),
        ("n", 1.5),
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
        ("max_tokens", 2**31),
        ("max_tokens", -5),
        ("stop_token_ids", [0] * 17),
        ("ignore_eos", 1),
        ("repetition_penalty", 0),
        ("presence_penalty", 101),
        ("frequency_penalty", [1]),
        ("logit_bias", [1]),
        ("logits_processors", ["mine"]),
        ("logits_processors", {"mine": {"size": "2"}}),
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
        ({"max_tokens": 0}, "max_tokens"),
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
        ({"echo": 1}, "echo"),
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


def test_a_formatters_refusal_is_a_bad_request() -> None:
    two_users = {"messages": CHAT["messages"] * 2}
    error = refused(post(app_of(), "/v1/chat/completions", two_users), "messages")
    assert error["code"] == "unsupported_messages"
