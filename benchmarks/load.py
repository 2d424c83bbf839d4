"""Asks an OpenAI-compatible server many things at once, and notes when answers came.

Tokens are those that the server counts in `usage`; a moment is a `perf_counter`.
"""

import asyncio
import dataclasses
import itertools
import json
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, TypeAlias

import httpx

WORDS_PER_TOKEN = 0.95  # of the words below, in the vocabulary of the default model
WORDS = (
    *("amber", "basket", "cedar", "dragon", "ember", "falcon", "garden", "harbor"),
    *("island", "jacket", "kettle", "lantern", "meadow", "needle", "orchard", "pepper"),
    *("quarry", "ribbon", "saddle", "timber", "umbrella", "velvet", "window", "yellow"),
)
DONE = "[DONE]"
Clock: TypeAlias = Callable[[], float]


class RequestFailed(Exception):
    """The server refused, or the answer broke off."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What is asked.

    Attributes:
        clients: Requests in flight at every moment.
        requests: How many there are altogether.
        prompt_tokens: About how long prompts are, the chat template not counted.
        new_tokens: Exactly how long answers are; end tokens are ignored.
        asked_before: How many of the texts there are were asked already, so that no
            server remembers one.
        model: What is asked for, where a server wants to hear it.
    """

    clients: int
    requests: int
    prompt_tokens: int = 128
    new_tokens: int = 64
    asked_before: int = 0
    model: str | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One request that was answered.

    Attributes:
        sent: The moment the request began.
        stamps: The moments at which text came.
        prompt_tokens: Tokens of the prompt, those of the chat template included.
        tokens: Tokens of the answer.
    """

    sent: float
    stamps: tuple[float, ...]
    prompt_tokens: int
    tokens: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One workload, done.

    Attributes:
        wall_seconds: From the first request's beginning to the last one's end.
        failures: What was wrong with the requests that were not answered.
    """

    workload: Workload
    wall_seconds: float
    answers: tuple[Answer, ...]
    failures: tuple[str, ...] = ()


def client_of(url: str, timeout_seconds: float) -> httpx.AsyncClient:
    """A client with a connection for each request, past any proxy.

    llama.cpp's server now and then closes one just when it is used again.
    """
    return httpx.AsyncClient(
        base_url=url,
        timeout=timeout_seconds,
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
        trust_env=False,
    )


def prompts(tokens: int, first: int = 0) -> Iterator[str]:
    """Texts that share no beginning, the same ones every time."""
    for number in itertools.count(first):
        words = random.Random(number).choices(WORDS, k=round(tokens * WORDS_PER_TOKEN))
        yield " ".join(words)


async def drive(
    client: httpx.AsyncClient, workload: Workload, clock: Clock = time.perf_counter
) -> Run:
    """Keeps `clients` requests in flight until all of them are answered."""
    every = prompts(workload.prompt_tokens, workload.asked_before)
    texts = itertools.islice(every, workload.requests)
    answers: list[Answer] = []
    failures: list[str] = []

    async def ask_in_turn() -> None:
        for text in texts:
            try:
                answers.append(await ask(client, text, workload, clock))
            except (httpx.HTTPError, RequestFailed) as error:
                failures.append(f"{type(error).__name__}: {error}")

    began = clock()
    async with asyncio.TaskGroup() as group:
        for _ in range(workload.clients):
            group.create_task(ask_in_turn())
    return Run(
        workload=workload,
        wall_seconds=clock() - began,
        answers=tuple(answers),
        failures=tuple(failures),
    )


async def ask(
    client: httpx.AsyncClient, text: str, workload: Workload, clock: Clock
) -> Answer:
    """Streams one answer.

    Raises:
        RequestFailed: It was refused, or it ended too soon.
    """
    body = {
        "messages": [{"role": "user", "content": text}],
        "max_tokens": workload.new_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if workload.model is not None:
        body["model"] = workload.model
    sent, stamps, usage = clock(), [], None
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        if response.is_error:
            said = (await response.aread()).decode(errors="replace")
            raise RequestFailed(f"{response.status_code} {said[:200]}")
        async for event in events(response):
            if any(choice["delta"].get("content") for choice in event["choices"]):
                stamps.append(clock())
            usage = event.get("usage") or usage
    if not stamps or usage is None:
        raise RequestFailed("the stream had no text, or no usage at its end")
    return Answer(
        sent=sent,
        stamps=tuple(stamps),
        prompt_tokens=usage["prompt_tokens"],
        tokens=usage["completion_tokens"],
    )


async def events(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    """The JSON objects of a stream of server-sent events, which `[DONE]` ends."""
    is_done = False
    async for line in response.aiter_lines():
        data = line.removeprefix("data:").strip()
        is_done = is_done or data == DONE
        if data and not is_done:
            event = json.loads(data)
            if "error" in event:
                raise RequestFailed(str(event["error"]))
            yield event
    if not is_done:
        raise RequestFailed("the stream broke off")
