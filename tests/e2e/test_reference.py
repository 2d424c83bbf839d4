"""The greedy answers of the default model in float32 equal PyTorch's, on every way."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import requests
from gradio_client import Client

from jaxserver import GenerationRequest, JAXServer, SamplingParams
from tests.e2e.reference import REFERENCES, Reference

pytestmark = pytest.mark.model
EACH = pytest.mark.parametrize("reference", REFERENCES, ids=["short", "long"])
SHORT = pytest.mark.parametrize("reference", REFERENCES[:1], ids=["short"])
"""For ways that differ from others only before and after the engine."""

GREEDY = SamplingParams(greedy=True, max_new_tokens=64, logprobs=0)


@pytest.fixture
def client(server_url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server_url}/v1", api_key="none") as client:
        yield client


@SHORT
def test_process(loaded_server: JAXServer, reference: Reference) -> None:
    *_, (text, used) = loaded_server.process(
        reference.prompt_text, greedy=True, max_new_tokens=64
    )

    assert text == reference.text
    assert used == len(reference.ids)


@EACH
@pytest.mark.parametrize("as_ids", [False, True])
def test_chunks(loaded_server: JAXServer, reference: Reference, as_ids: bool) -> None:
    prompt = reference.prompt_ids if as_ids else reference.prompt_text
    request = GenerationRequest(prompt=prompt, sampling=GREEDY)

    chunks = list(loaded_server.generate(request))

    assert "".join(chunk.text for chunk in chunks) == reference.text
    assert tuple(t for chunk in chunks for t in chunk.token_ids) == reference.ids
    reference.assert_logprobs([e.logprob for c in chunks for e in c.logprobs or ()])
    assert chunks[-1].usage.prompt_tokens == len(reference.prompt_ids)


@EACH
@pytest.mark.parametrize("stream", [False, True])
def test_chat_completions(
    client: openai.OpenAI, reference: Reference, stream: bool
) -> None:
    arguments: dict[str, Any] = dict(
        model="smollm2-135m-instruct",
        messages=[{"role": "user", "content": reference.prompt}],
        temperature=0,
        max_completion_tokens=64,
        logprobs=True,
    )

    if stream:
        pieces = list(
            client.chat.completions.create(
                **arguments, stream=True, stream_options={"include_usage": True}
            )
        )
        choices = [choice for piece in pieces for choice in piece.choices]
        text = "".join(choice.delta.content or "" for choice in choices)
        usage = pieces[-1].usage
    else:
        answer = client.chat.completions.create(**arguments)
        choices, usage = answer.choices, answer.usage
        text = choices[0].message.content
    entries = [e for c in choices if c.logprobs for e in c.logprobs.content or ()]

    assert text == reference.text
    assert usage.completion_tokens == len(reference.ids)
    reference.assert_logprobs([entry.logprob for entry in entries])


@EACH
@pytest.mark.parametrize("stream", [False, True])
def test_completions(client: openai.OpenAI, reference: Reference, stream: bool) -> None:
    arguments: dict[str, Any] = dict(
        model="smollm2-135m-instruct",
        prompt=list(reference.prompt_ids),
        temperature=0,
        max_tokens=64,
        logprobs=0,
    )

    if stream:
        pieces = list(client.completions.create(**arguments, stream=True))
    else:
        pieces = [client.completions.create(**arguments)]
    choices = [choice for piece in pieces for choice in piece.choices]
    logprobs = [
        value for c in choices if c.logprobs for value in c.logprobs.token_logprobs
    ]

    assert "".join(choice.text for choice in choices) == reference.text
    reference.assert_logprobs(logprobs)


@SHORT
def test_chat(server_url: str, reference: Reference) -> None:
    body = {"prompt": reference.prompt, "greedy": True, "max_new_tokens": 64}

    answer = requests.post(f"{server_url}/chat", json=body, timeout=120).json()

    assert answer["response"] == reference.text
    assert answer["input"] == reference.prompt_text
    assert answer["tokens_used"] == len(reference.ids)


@SHORT
@pytest.mark.parametrize("page", ["instruct", "chat"])
def test_gradio_client(server_url: str, reference: Reference, page: str) -> None:
    client = Client(f"{server_url}/gradio_{page}/", verbose=False)
    try:
        answer = client.predict(
            reference.prompt, greedy=True, max_new_tokens=64, api_name=f"/{page}"
        )
    finally:
        client.close()

    assert answer == reference.text


@SHORT
def test_generate_command(default_model_path: Path, reference: Reference) -> None:
    command = [sys.executable, "-m", "jaxserver", "generate", reference.prompt]
    options = ["--dtype", "fp32", "--quantize", "none", "--greedy", "--json"]
    sizes = ["--max-new-tokens", "64", "--max-length", "1024"]
    model = ["--model", str(default_model_path), "--logprobs", "0"]
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}

    done = subprocess.run(
        [*command, *options, *sizes, *model],
        capture_output=True,
        check=True,
        env=environment,
    )
    answer = json.loads(done.stdout)

    assert answer["text"] == reference.text
    assert tuple(answer["token_ids"]) == reference.ids
    reference.assert_logprobs([entry["logprob"] for entry in answer["logprobs"]])
    assert answer["prompt_tokens"] == len(reference.prompt_ids)
    assert answer["completion_tokens"] == len(reference.ids)
