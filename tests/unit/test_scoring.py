"""Scoring and several choices over HTTP, as the official client sees them."""

from collections.abc import Iterator
from typing import Any

import openai
import pytest

from jaxserver.server import JAXServer
from tests.unit.tiny_server import tiny_servers

WISH: dict[str, Any] = {"temperature": 1.0, "seed": 5, "max_tokens": 25}


@pytest.fixture(scope="module")
def server() -> Iterator[JAXServer]:
    with tiny_servers() as servers:
        made = servers.open()
        made.fire()
        yield made


@pytest.fixture(scope="module")
def client(server: JAXServer) -> Iterator[openai.OpenAI]:
    address = f"{server.url}/v1"
    with openai.OpenAI(base_url=address, api_key="-", max_retries=0) as made:
        yield made


def ids(server: JAXServer, text: str) -> list[int]:
    assert server._host.model is not None
    return server._host.model.tokenizer.encode(text)


def test_an_echo_repeats_the_log_probabilities_of_the_answer(
    server: JAXServer, client: openai.OpenAI
) -> None:
    prompt = ids(server, "What is a sea?")
    bias = {str(letter): 50 for letter in range(97, 123)}
    made = client.completions.create(
        model=server.model_name, prompt=prompt, logprobs=5, logit_bias=bias, **WISH
    ).choices[0]
    assert made.logprobs is not None
    whole = [*prompt, *made.text.encode()]
    assert len(made.text) == 25

    scored = client.completions.create(
        model=server.model_name, prompt=whole, logprobs=5, echo=True, max_tokens=0
    ).choices[0]
    assert scored.text == f"What is a sea?{made.text}"
    assert scored.finish_reason == "length"
    assert scored.logprobs is not None
    assert scored.logprobs.token_logprobs is not None
    assert scored.logprobs.token_logprobs[0] is None
    assert scored.logprobs.token_logprobs[-25:] == made.logprobs.token_logprobs
    assert scored.logprobs.top_logprobs is not None
    assert scored.logprobs.top_logprobs[-25:] == made.logprobs.top_logprobs
    assert scored.logprobs.text_offset == [0, *range(len(whole) - 1)]


def test_a_text_prompt_is_echoed_with_its_first_token(
    server: JAXServer, client: openai.OpenAI
) -> None:
    events = list(
        client.completions.create(
            model=server.model_name,
            prompt="ab",
            logprobs=0,
            echo=True,
            max_tokens=3,
            seed=1,
            stream=True,
        )
    )
    logprobs = [e.choices[0].logprobs for e in events if e.choices[0].logprobs]
    values = [value for one in logprobs for value in one.token_logprobs or ()]
    assert len(values) == len(ids(server, "ab")) + 3
    assert values[0] is None
    assert None not in values[1:]
    assert "".join(e.choices[0].text for e in events).startswith("ab")


def test_choices_differ_and_each_comes_again(
    server: JAXServer, client: openai.OpenAI
) -> None:
    def texts(count: int) -> list[str]:
        answer = client.chat.completions.create(
            model=server.model_name,
            messages=[{"role": "user", "content": "Say something."}],
            n=count,
            **WISH,
        )
        assert answer.usage is not None
        assert answer.usage.completion_tokens <= count * 25
        return [choice.message.content or "" for choice in answer.choices]

    three = texts(3)
    assert len(set(three)) == 3
    assert texts(1) == three[:1]
    assert texts(2) == three[:2]
