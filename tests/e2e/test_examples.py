"""Every example does what it says, on the default model."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import httpx
import pytest

from examples import mounted, pipeline
from examples.test_property import (  # collected here too, for the server that is there
    test_an_answer_is_the_same_in_company,
    test_the_same_seed_gives_the_same_answer,
)
from jaxserver import JAXServer
from jaxserver.adapters.http.serve import HttpServer
from tests.tiny import tiny_model

__all__ = [
    "test_an_answer_is_the_same_in_company",
    "test_the_same_seed_gives_the_same_answer",
]
pytestmark = pytest.mark.model
FOLDER = Path(pipeline.__file__).parent
QUESTION = (
    "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n"
    "<|im_start|>assistant\n"
)


def run(script: str, *arguments: str) -> str:
    """What a script prints, run as a user runs it, with one device."""
    done = subprocess.run(
        [sys.executable, FOLDER / script, *arguments],
        env={key: text for key, text in os.environ.items() if key != "XLA_FLAGS"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def server(loaded_server: JAXServer) -> JAXServer:
    """Stands in for the fixture of `test_property`."""
    return loaded_server


@pytest.fixture(scope="module")
def newsroom(loaded_server: JAXServer) -> Iterator[httpx.Client]:
    """A client of the application that mounts the server."""
    http = HttpServer(mounted.build(loaded_server), "127.0.0.1", 0)
    http.start()
    with httpx.Client(base_url=f"http://127.0.0.1:{http.port}", timeout=60) as client:
        yield client
    http.stop()


def test_decoding_by_hand_never_runs_past_the_longest_sequence() -> None:
    model = tiny_model(max_len=32)
    prompt = list(range(28))
    drawn = list(pipeline.decode(model.fns, model.params, prompt, pipeline.SAMPLING))
    assert len(drawn) == 4
    assert all(0 <= token < model.fns.vocab_size for token in drawn)


def test_decoding_by_hand_takes_a_long_prompt_in_pieces() -> None:
    model = tiny_model(max_len=384)
    prompt = [token % 64 for token in range(300)]
    decode = pipeline.decode(model.fns, model.params, prompt, pipeline.SAMPLING)
    first = next(decode)
    again = pipeline.decode(
        model.fns, model.params, [*prompt, first], pipeline.SAMPLING
    )
    assert list(islice(decode, 3)) == list(islice(again, 3))


def test_decoding_by_hand_draws_what_the_server_draws(loaded_server: JAXServer) -> None:
    *_, (answer, _) = loaded_server.process(
        QUESTION, max_new_tokens=32, temperature=0.7, top_k=50, top_p=1, seed=7
    )
    assert run("pipeline.py", QUESTION) == f"{answer}\n"


@pytest.mark.usefixtures("default_model_path")
def test_a_subclass_writes_its_own_prompts() -> None:
    printed = run("own_prompt.py")
    assert printed.startswith("<|im_start|>system\nYou are a librarian.")
    assert "<|im_start|>user\nWho wrote Hamlet?<|im_end|>" in printed
    assert printed.split("<|im_start|>assistant\n")[1].strip()


@pytest.mark.usefixtures("default_model_path")
def test_a_subclass_answers_by_methods_of_its_own() -> None:
    *answers, history = map(ast.literal_eval, run("own_answers.py").splitlines())
    assert [answer["number"] for answer in answers] == [1, 2]
    assert all(0 < answer["tokens_used"] <= 24 for answer in answers)
    ((asked, answered),) = history
    assert (asked, bool(answered)) == ("Say hello.", True)


def test_requests_is_all_that_a_client_needs(server_url: str) -> None:
    printed = run("client.py", server_url)
    assert "You answer with a list." in printed
    assert "Name three colours." in printed
    assert run("client.py", server_url) == printed


def test_an_application_answers_with_the_server_it_mounts(
    newsroom: httpx.Client,
) -> None:
    text = "The river rose and the old bridge was closed for a week."
    answered = newsroom.post("/headline", json={"text": text})
    assert answered.status_code == 200
    assert answered.json()["headline"]
    body = {"prompt": "Say hello.", "greedy": True, "max_new_tokens": 4}
    assert newsroom.post("/llm/instruct", json=body).json()["tokens_used"] == 4


def test_a_mounted_server_streams(newsroom: httpx.Client) -> None:
    body = {
        "messages": [{"role": "user", "content": "Say hello."}],
        "max_tokens": 4,
        "stream": True,
    }
    with newsroom.stream("POST", "/llm/v1/chat/completions", json=body) as response:
        events = [line for line in response.iter_lines() if line]
    assert response.headers["content-type"].startswith("text/event-stream")
    assert events[-1] == "data: [DONE]"


def test_a_mounted_server_keeps_the_form_of_its_errors(newsroom: httpx.Client) -> None:
    chat = newsroom.post("/llm/v1/chat/completions", json={"messages": []})
    assert chat.status_code == 400
    assert chat.json()["error"]["param"] == "messages"
    instruct = newsroom.post("/llm/instruct", json={"prompt": 3})
    assert instruct.status_code == 400
    assert instruct.json()["error"]["field"] == "prompt"
    assert newsroom.post("/headline", json={"text": 3}).status_code == 422


def test_a_mounted_server_says_how_it_is(newsroom: httpx.Client) -> None:
    assert newsroom.get("/llm/ready").json() == {"status": "ok"}
    assert newsroom.get("/llm/status").json()["state"] == "ready"
    assert newsroom.get("/status").status_code == 404
