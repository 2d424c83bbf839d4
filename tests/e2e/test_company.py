"""Over HTTP, an answer in company equals the answer alone, and nothing is compiled."""

import concurrent.futures
import random
from typing import Any

import httpx
import pytest

from jaxserver import JAXServer

pytestmark = pytest.mark.model
CLIENTS = 16
TOPICS = ("rivers", "a violin", "the number seven", "bread", "old maps", "rain")


def requests_of(seed: int) -> list[dict[str, Any]]:
    """Mixed requests: short and long prompts, greedy and sampled, every parameter."""
    rng = random.Random(seed)
    return [_request(rng, number) for number in range(CLIENTS)]


def _request(rng: random.Random, number: int) -> dict[str, Any]:
    filler = " ".join(rng.choices(TOPICS, k=rng.choice([1, 20, 150])))
    sampling: dict[str, Any] = rng.choice(
        [
            {"temperature": 0},
            {"temperature": 0.8},
            {"temperature": 1.2, "top_k": 0, "top_p": 0.9},
            {"temperature": 1.0, "top_k": 200, "min_p": 0.02},
            {"temperature": 0.7, "repetition_penalty": 1.2, "presence_penalty": 0.5},
            {"temperature": 0.9, "frequency_penalty": 0.4, "logit_bias": {"30": 2.5}},
            {"temperature": 0.9, "stop": ["the", "."]},
        ]
    )
    return {
        "prompt": f"Some words about {rng.choice(TOPICS)}. {filler}",
        "max_tokens": rng.choice([1, 3, 12, 20]),
        "seed": 2**40 + number,
        "logprobs": rng.choice([0, 5]),
        **sampling,
    }


def ask(url: str, body: dict[str, Any]) -> tuple[object, ...]:
    """Everything of an answer that depends on the request."""
    answer = httpx.post(f"{url}/v1/completions", json=body, timeout=300)
    assert answer.status_code == 200, answer.text
    choice, usage = answer.json()["choices"][0], answer.json()["usage"]
    del usage["prompt_tokens_details"]  # what was there already is no part of an answer
    return choice["text"], choice["logprobs"], choice["finish_reason"], usage


def compiled_since(server: JAXServer) -> int:
    """Compilations since it was ready, those of other tests in this process too."""
    return server.snapshot().compiles_after_ready


def test_sixteen_clients_get_what_each_gets_alone(
    loaded_server: JAXServer, server_url: str
) -> None:
    compiled = compiled_since(loaded_server)
    bodies = requests_of(seed=1)
    alone = [ask(server_url, body) for body in bodies]
    assert len({answer[0] for answer in alone}) > CLIENTS // 2

    for order in ([*range(CLIENTS)], random.Random(2).sample(range(CLIENTS), CLIENTS)):
        with concurrent.futures.ThreadPoolExecutor(CLIENTS) as pool:
            asked = {i: pool.submit(ask, server_url, bodies[i]) for i in order}
        for i, future in asked.items():
            assert future.result() == alone[i], bodies[i]

    assert compiled_since(loaded_server) == compiled


def test_every_size_of_batch_gives_the_same_answer(
    loaded_server: JAXServer, server_url: str
) -> None:
    compiled = compiled_since(loaded_server)
    body = {
        "prompt": "Some words about rain.",
        "max_tokens": 5,
        "temperature": 0.8,
        "seed": 2**40,
        "logprobs": 5,
    }
    alone = ask(server_url, body)

    for size in range(2, CLIENTS + 1):
        with concurrent.futures.ThreadPoolExecutor(size) as pool:
            asked = [pool.submit(ask, server_url, body) for _ in range(size)]
        assert [future.result() for future in asked] == [alone] * size

    assert compiled_since(loaded_server) == compiled
