"""Asks an OpenAI-compatible server many things at once, and notes when answers came.

Tokens are those that the server counts, as its dialect says; a moment is a
`perf_counter`.
"""

import asyncio
import dataclasses
import itertools
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, TypeAlias

import httpx

from benchmarks.texts import TEXTS

DONE = "[DONE]"
Clock: TypeAlias = Callable[[], float]


class RequestFailed(Exception):
    """The server refused, or the answer broke off."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """What a server wants to hear for an answer in full length, and how it counts.

    Attributes:
        wishes: Members of a request that not every server takes.
        has_usage: Whether a last event has the `usage`, and `[DONE]` is the end. Else
            every token has an event of its own, and one with a finish reason is the
            end.
    """

    wishes: Mapping[str, Any]
    has_usage: bool = True


COMMON = Dialect(wishes={"ignore_eos": True, "stream_options": {"include_usage": True}})


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
        dialect: How the server is asked.
        text: What kind of texts: `words` or `edits`.
    """

    clients: int
    requests: int
    prompt_tokens: int = 128
    new_tokens: int = 64
    asked_before: int = 0
    dialect: Dialect = COMMON
    text: str = "words"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One request that was answered.

    Attributes:
        sent: The moment the request began.
        stamps: The moments at which text came.
        prompt_tokens: Tokens of the prompt, those of the chat template included; None
            where the server does not say.
        tokens: Tokens of the answer.
    """

    sent: float
    stamps: tuple[float, ...]
    prompt_tokens: int | None
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


async def drive(
    client: httpx.AsyncClient, workload: Workload, clock: Clock = time.perf_counter
) -> Run:
    """Keeps `clients` requests in flight until all of them are answered."""
    texts_of = TEXTS[workload.text]
    every = texts_of(workload.prompt_tokens, workload.asked_before)
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
        "stream": True,
        **workload.dialect.wishes,
    }
    sent, stamps, usage, pieces = clock(), [], None, 0
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        if response.is_error:
            said = (await response.aread()).decode(errors="replace")
            raise RequestFailed(f"{response.status_code} {said[:200]}")
        async for event in events(response, workload.dialect):
            if any(choice["delta"].get("content") for choice in event["choices"]):
                stamps.append(clock())
            usage = event.get("usage") or usage
            pieces += any(is_token(choice) for choice in event["choices"])
    if not workload.dialect.has_usage:
        usage = {"completion_tokens": pieces}
    if not stamps or usage is None:
        raise RequestFailed("the stream had no text, or no usage at its end")
    return Answer(
        sent=sent,
        stamps=tuple(stamps),
        prompt_tokens=usage.get("prompt_tokens"),
        tokens=usage["completion_tokens"],
    )


def is_token(choice: Mapping[str, Any]) -> bool:
    """Whether it has a token, with text or still without, where each comes alone."""
    return "role" not in choice["delta"] and not choice.get("finish_reason")


async def events(
    response: httpx.Response, dialect: Dialect = COMMON
) -> AsyncIterator[dict[str, Any]]:
    """The JSON objects of a stream of server-sent events, up to its end."""
    is_done = False
    async for line in response.aiter_lines():
        data = line.removeprefix("data:").strip()
        is_done = is_done or data == DONE
        if data and not is_done:
            event = json.loads(data)
            if "error" in event:
                raise RequestFailed(str(event["error"]))
            yield event
            if not dialect.has_usage:
                is_done = any(
                    choice.get("finish_reason") for choice in event["choices"]
                )
    if not is_done:
        raise RequestFailed("the stream broke off")
