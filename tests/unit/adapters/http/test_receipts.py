"""A receipt comes with every form of answer that it is asked for, and with no other."""

import json
from typing import Any

import pytest

from jaxserver.ports.handlers import Answer, Handlers, InstructRequest
from jaxserver.ports.receipt import Receipt
from tests.fakes import IDENTITY, ScriptedGenerator
from tests.unit.adapters.http.in_process import (
    BOTH,
    CHAT,
    TEXT,
    app_of,
    events,
    post,
    refused,
)

ROUTES = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": TEXT,
    "/instruct": {"prompt": "p"},
    "/chat": {"prompt": "p"},
}
ALL = pytest.mark.parametrize(("path", "body"), ROUTES.items())


def streamed(path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The events of an answer, but for the word that ends them."""
    *pieces, done = events(post(app_of(), path, {**body, "stream": True}))
    assert done == "[DONE]"
    return [json.loads(piece) for piece in pieces]


@ALL
def test_a_whole_answer_has_the_receipt_that_was_asked_for(
    path: str, body: dict[str, Any]
) -> None:
    answer = post(app_of(), path, {**body, "receipt": True}).json()

    receipt = Receipt.from_json(answer["receipt"])
    assert receipt.identity == IDENTITY
    assert receipt.request.sampling.seed == answer["seed"]
    assert receipt.answer.ids == (0, 1)


@ALL
def test_a_streamed_answer_has_it_in_its_last_event(
    path: str, body: dict[str, Any]
) -> None:
    *before, last = streamed(path, {**body, "receipt": True})

    assert Receipt.from_json(last["receipt"]).answer.ids == (0, 1)
    assert before
    assert all("receipt" not in event for event in before)


@BOTH
def test_it_is_in_the_last_event_with_choices_where_counts_come_after(
    path: str, body: dict[str, Any]
) -> None:
    options = {"receipt": True, "stream_options": {"include_usage": True}}
    *_, last, counts = streamed(path, {**body, **options})

    assert last["choices"][0]["finish_reason"] == "stop"
    assert "receipt" in last
    assert counts["choices"] == []
    assert "receipt" not in counts


@ALL
@pytest.mark.parametrize("asked", [{}, {"receipt": False}, {"receipt": None}])
def test_nobody_gets_one_unasked(
    path: str, body: dict[str, Any], asked: dict[str, Any]
) -> None:
    generator = ScriptedGenerator("Hel", "lo")
    answer = post(app_of(generator), path, {**body, **asked}).json()

    assert "receipt" not in answer
    assert not generator.requests[0].receipt
    assert all("receipt" not in event for event in streamed(path, {**body, **asked}))


@BOTH
def test_every_answer_and_event_has_the_fingerprint(
    path: str, body: dict[str, Any]
) -> None:
    asked = {**body, "stream_options": {"include_usage": True}}
    answer = post(app_of(), path, body).json()

    said = {event["system_fingerprint"] for event in streamed(path, asked)}
    assert said == {answer["system_fingerprint"]} == {IDENTITY.fingerprint()}
    unknown = post(app_of(status=None), path, body).json()
    assert unknown["system_fingerprint"] is None


@pytest.mark.parametrize("stream", [False, True])
def test_an_own_method_has_none_to_give_and_that_is_said(stream: bool) -> None:
    def forward(request: InstructRequest) -> Answer:
        return {"response": request.prompt}

    app = app_of(handlers=Handlers(forward_instruct=forward))
    asked = {"prompt": "p", "stream": stream}
    response = post(app, "/instruct", {**asked, "receipt": True})

    assert response.status_code == 400
    assert response.json()["error"]["field"] == "receipt"
    assert post(app, "/instruct", {**asked, "receipt": False}).status_code == 200


@BOTH
def test_several_answers_have_none(path: str, body: dict[str, Any]) -> None:
    refused(post(app_of(), path, {**body, "receipt": True, "n": 2}), "receipt")
    assert post(app_of(), path, {**body, "receipt": True, "n": 1}).status_code == 200


@BOTH
def test_what_is_no_truth_value_is_refused(path: str, body: dict[str, Any]) -> None:
    refused(post(app_of(), path, {**body, "receipt": 1}), "receipt")
