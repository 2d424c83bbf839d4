import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from jaxserver.adapters.http.original_wire import ChatBody, InstructBody
from jaxserver.ports.errors import (
    EngineFailed,
    NoChatTemplate,
    NotReady,
    PromptTooLong,
    ServerFull,
    UnsupportedMessages,
)
from jaxserver.ports.handlers import (
    CANCEL,
    CancelToken,
    ChatRequest,
    Handlers,
    InstructRequest,
)
from jaxserver.ports.prompt import Rendered
from jaxserver.ports.types import Message, SamplingParams
from tests.fakes import ByteFormatter, ScriptedGenerator
from tests.unit.adapters.http.in_process import app_of, events, failing, post


def test_an_instruction_is_answered_with_input_response_and_tokens_used() -> None:
    response = post(app_of(), "/instruct", {"prompt": "p", "system": "s"})

    assert response.status_code == 200
    assert response.json() == {
        "input": "system: s\nuser: p\nassistant: ",
        "response": "Hello",
        "tokens_used": 2,
        "prompt_tokens": 3,
        "prompt_tokens_dropped": 0,
        "finish_reason": "stop",
        "seed": 7,
    }


def test_a_chat_renders_its_history_in_order() -> None:
    body = {"prompt": "p", "history": [["a", "b"], ["c", "d"]], "system": "s"}

    rendered = post(app_of(), "/chat", body).json()["input"]

    turns = "user: a\nassistant: b\nuser: c\nassistant: d\nuser: p\nassistant: "
    assert rendered == f"system: s\n{turns}"


@pytest.mark.parametrize("path", ["/instruct", "/chat"])
@pytest.mark.parametrize("body", [{"prompt": "p"}, {"prompt": "p", "system": None}])
def test_a_missing_system_prompt_is_not_written(
    path: str, body: dict[str, Any]
) -> None:
    assert post(app_of(), path, body).json()["input"] == "user: p\nassistant: "


class Shouting(ByteFormatter):
    def format(self, messages: Sequence[Message]) -> str:
        return super().format(messages).upper()


def test_an_instruction_may_be_written_down_otherwise_than_a_chat() -> None:
    app = app_of(instruct_formatter=Shouting())
    assert post(app, "/instruct", {"prompt": "p"}).json()["input"].startswith("USER: P")
    assert post(app, "/chat", {"prompt": "p"}).json()["input"].startswith("user: p")


@pytest.mark.parametrize("path", ["/instruct", "/chat"])
def test_every_sampling_field_reaches_the_generator(path: str) -> None:
    generator = ScriptedGenerator("x")
    sampling = {
        "temperature": 0.5,
        "greedy": True,
        "max_new_tokens": 9,
        "top_p": 0.25,
        "top_k": 4,
        "seed": 2**64 - 1,
        "stop": ["a", "b"],
    }

    assert post(app_of(generator), path, {"prompt": "p", **sampling}).is_success

    (request,) = generator.requests
    assert request.sampling == SamplingParams(
        **{**sampling, "stop": ("a", "b")}  # type: ignore[arg-type]  # values as JSON
    )
    assert isinstance(request.prompt, Rendered)
    assert not request.streaming


def test_null_is_the_servers_default() -> None:
    generator = ScriptedGenerator("x")
    names = ["temperature", "greedy", "max_new_tokens", "top_p", "top_k", "seed"]
    body = {"prompt": "p", **dict.fromkeys([*names, "stop", "stream", "history"])}

    assert post(app_of(generator), "/chat", body).is_success

    assert generator.requests[0].sampling == SamplingParams()


@pytest.mark.parametrize("truncate", [True, False])
def test_a_prompt_is_cut_where_the_server_says_so_but_for_its_system_turn(
    truncate: bool,
) -> None:
    generator = ScriptedGenerator("x")
    app = app_of(generator, truncate_prompts=truncate)

    post(app, "/chat", {"prompt": "p", "system": "s"})

    assert generator.requests[0].truncate is truncate
    assert isinstance(prompt := generator.requests[0].prompt, Rendered)
    assert prompt.kept_prefix() == "system: s\n"


@pytest.mark.parametrize("path", ["/instruct", "/chat"])
def test_a_streamed_answer_comes_in_pieces_and_then_whole(path: str) -> None:
    generator = ScriptedGenerator("Hel", "lo")

    response = post(app_of(generator), path, {"prompt": "p", "stream": True})

    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-accel-buffering"] == "no"
    *pieces, whole, done = events(response)
    assert [json.loads(piece) for piece in pieces] == [
        {"response": "Hel", "tokens_used": 1},
        {"response": "lo", "tokens_used": 2},
    ]
    assert json.loads(whole) == post(app_of(), path, {"prompt": "p"}).json()
    assert done == "[DONE]"
    assert generator.requests[0].streaming


@pytest.mark.parametrize("path", ["/instruct", "/chat"])
@pytest.mark.parametrize("stream", [True, False])
def test_a_server_that_is_not_ready_says_that_it_is_down(
    path: str, stream: bool
) -> None:
    app = app_of(failing(lambda: NotReady("loading", 3)))

    response = post(app, path, {"prompt": "p", "stream": stream})

    assert (response.status_code, response.json()) == (200, {"status": "down"})


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ServerFull("full", 2), 429),
        (EngineFailed("broken"), 500),
        (PromptTooLong(9, 5), 400),
        (UnsupportedMessages("no"), 400),
        (NoChatTemplate("format_chat"), 400),
        (ZeroDivisionError("inner"), 500),
    ],
)
def test_an_error_before_the_first_piece_has_its_own_status(
    error: Exception, status: int, stream: bool
) -> None:
    app = app_of(failing(lambda: error))

    response = post(app, "/instruct", {"prompt": "p", "stream": stream})

    assert response.status_code == status
    assert set(response.json()["error"]) == {"code", "message", "field"}
    assert "inner" not in response.text


@pytest.mark.parametrize("stream", [True, False])
def test_a_handler_answers_in_place_of_the_model(stream: bool) -> None:
    seen: list[object] = []

    def forward_chat(request: ChatRequest) -> Mapping[str, object]:
        cancel = CANCEL.get()
        assert isinstance(cancel, CancelToken)
        seen.append(request)
        seen.append(cancel.is_set())
        return {"mine": request.prompt, "é": 1.5}

    generator = ScriptedGenerator("x")
    app = app_of(generator, handlers=Handlers(forward_chat=forward_chat))
    body = {"prompt": "p", "history": [["a", "b"]], "stop": "x", "stream": stream}

    response = post(app, "/chat", body)

    expected = {"mine": "p", "é": 1.5}
    if stream:
        whole, done = events(response)
        assert (json.loads(whole), done) == (expected, "[DONE]")
    else:
        assert response.json() == expected
    wanted = ChatRequest(prompt="p", history=[["a", "b"]], stop=["x"], stream=stream)
    assert seen == [wanted, False]
    assert not generator.requests
    assert post(app, "/instruct", {"prompt": "p"}).json()["response"] == "x"


@pytest.mark.parametrize("stream", [True, False])
def test_a_handlers_error_has_its_own_status(stream: bool) -> None:
    def forward_instruct(request: InstructRequest) -> Mapping[str, object]:
        raise ServerFull("full", 4)

    app = app_of(handlers=Handlers(forward_instruct=forward_instruct))

    response = post(app, "/instruct", {"prompt": "p", "stream": stream})

    assert response.status_code == 429
    assert response.headers["retry-after"] == "4"


@pytest.mark.parametrize("stream", [True, False])
def test_a_handlers_answer_that_is_no_json_is_a_server_error(stream: bool) -> None:
    def forward_instruct(request: InstructRequest) -> Mapping[str, object]:
        return {"x": float("nan")}

    app = app_of(handlers=Handlers(forward_instruct=forward_instruct))

    response = post(app, "/instruct", {"prompt": "p", "stream": stream})

    assert response.status_code == 500
    assert response.json()["error"]["code"] == "internal_error"


def test_the_bodies_have_the_fields_of_the_ports_requests() -> None:
    """But for the receipt, which is the route's to give and no method's."""
    assert InstructBody(prompt="p").to_request() == InstructRequest(prompt="p")
    assert ChatBody(prompt="p").to_request() == ChatRequest(prompt="p")
    for body, request in ((InstructBody, InstructRequest), (ChatBody, ChatRequest)):
        names = {field.name for field in dataclasses.fields(request)}
        assert set(body.model_fields) == names | {"receipt"}
