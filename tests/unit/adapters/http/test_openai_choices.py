"""Several choices to one prompt, and prompts that are written before their answers."""

import json
from typing import Any

import pytest

from tests.fakes import ScriptedGenerator
from tests.unit.adapters.http.in_process import (
    BOTH,
    CHAT,
    TEXT,
    app_of,
    events,
    post,
    refused,
)


@BOTH
def test_each_choice_draws_in_its_own_way_from_one_seed(
    path: str, body: dict[str, Any]
) -> None:
    generator = ScriptedGenerator("Hel", "lo")
    answer = post(app_of(generator), path, {**body, "n": 3}).json()

    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert [request.choice for request in generator.requests] == [0, 1, 2]
    seeds = {request.sampling.seed for request in generator.requests}
    assert len(seeds) == 1
    assert None not in seeds
    assert answer["usage"]["prompt_tokens"] == 3
    assert answer["usage"]["completion_tokens"] == 3 * 2
    assert answer["usage"]["total_tokens"] == 3 + 3 * 2


@BOTH
def test_the_seed_of_several_choices_can_be_given(
    path: str, body: dict[str, Any]
) -> None:
    generator = ScriptedGenerator("x")
    post(app_of(generator), path, {**body, "n": 2, "seed": 11})
    assert [request.sampling.seed for request in generator.requests] == [11, 11]


def test_choices_are_streamed_side_by_side() -> None:
    generator = ScriptedGenerator("Hel", "lo", chunk_seconds=0.01)
    options = {"n": 2, "stream": True, "stream_options": {"include_usage": True}}
    sent = events(post(app_of(generator), "/v1/chat/completions", {**CHAT, **options}))

    assert sent.pop() == "[DONE]"
    *pieces, last = [json.loads(event) for event in sent]
    assert (last["choices"], last["usage"]["completion_tokens"]) == ([], 4)
    for index in (0, 1):
        mine = [p["choices"][0] for p in pieces if p["choices"][0]["index"] == index]
        assert mine[0]["delta"] == {"role": "assistant", "content": ""}
        text = "".join(choice["delta"].get("content", "") for choice in mine)
        assert (text, mine[-1]["finish_reason"]) == ("Hello", "stop")
    order = [p["choices"][0]["index"] for p in pieces]
    assert order != sorted(order)


@BOTH
@pytest.mark.parametrize("stream", [False, True])
def test_where_one_choice_is_refused_none_goes_on(
    path: str, body: dict[str, Any], stream: bool
) -> None:
    generator = ScriptedGenerator("Hel", "lo", chunk_seconds=5)
    taken = generator.generate

    def refuse_third(request: Any) -> Any:
        if len(generator.requests) == 2:
            raise RuntimeError("no more")
        return taken(request)

    generator.generate = refuse_third  # type: ignore[method-assign]  # a test's own
    response = post(app_of(generator), path, {**body, "n": 3, "stream": stream})

    assert response.status_code == 500
    assert len(generator.streams) == 2
    assert all(made.cancelled.is_set() for made in generator.streams)


def test_a_prompt_is_written_before_its_answer() -> None:
    answer = post(app_of(), "/v1/completions", {**TEXT, "echo": True}).json()
    assert answer["choices"][0]["text"] == "hiHello"


def test_ids_are_echoed_as_the_text_they_stand_for() -> None:
    body = {"prompt": list(b"one "), "echo": True, "stream": True}
    sent = events(post(app_of(), "/v1/completions", body))[:-1]
    texts = [json.loads(event)["choices"][0]["text"] for event in sent]
    assert "".join(texts) == "one Hello"


def test_without_a_tokenizer_nothing_is_echoed() -> None:
    body = {**TEXT, "echo": True}
    refused(post(app_of(tokenizer=None), "/v1/completions", body), "echo")


def test_an_id_outside_the_vocabulary_is_not_echoed() -> None:
    body = {"prompt": [258], "echo": True}
    refused(post(app_of(), "/v1/completions", body), "prompt")


@pytest.mark.parametrize(
    ("more", "is_scored"),
    [
        ({"echo": True, "logprobs": 0}, True),
        ({"echo": True}, False),
        ({"logprobs": 3}, False),
    ],
)
def test_an_echo_with_log_probabilities_asks_for_the_prompts(
    more: dict[str, Any], is_scored: bool
) -> None:
    generator = ScriptedGenerator("x")
    post(app_of(generator), "/v1/completions", {**TEXT, **more, "max_tokens": 0})
    (request,) = generator.requests
    assert (request.score_prompt, request.sampling.max_new_tokens) == (is_scored, 0)


@BOTH
def test_logits_processors_reach_the_generator(path: str, body: dict[str, Any]) -> None:
    generator = ScriptedGenerator("x")
    asked = {"mine": {"size": 2, "by": 0.5, "on": True}, "other": {}}
    post(app_of(generator), path, {**body, "logits_processors": asked})
    assert generator.requests[0].sampling.logits_processors == asked


@pytest.mark.parametrize("path", ["/instruct", "/chat"])
def test_the_originals_routes_take_logits_processors(path: str) -> None:
    generator = ScriptedGenerator("x")
    body = {"prompt": "p", "logits_processors": {"mine": {"size": 2}}}
    assert post(app_of(generator), path, body).is_success
    asked = generator.requests[0].sampling.logits_processors
    assert asked == {"mine": {"size": 2}}
