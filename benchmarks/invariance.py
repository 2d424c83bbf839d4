"""Asks a server the same things twice in different order, and compares every bit.

Of each answer its tokens, its text, its log-probabilities and why it ended; for weights
in float32, in int8, and in int8 with kernels of our own. `--requests 200 --clients 16`
is the default.
"""

import argparse
import asyncio
import json
import random
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

if __name__ == "__main__":
    # This folder would be first on the path, and `http.py` the library's own `http`.
    sys.path[0] = str(Path(__file__).parents[1])

import httpx

from benchmarks.load import RequestFailed, events
from benchmarks.starting import fetch, started
from benchmarks.texts import WORDS

WEIGHTS = {
    "float32": ("--dtype", "fp32", "--quantize", "none"),
    "int8": ("--dtype", "fp32", "--quantize", "int8"),
    "int8, native": ("--dtype", "fp32", "--quantize", "int8", "--kernels", "native"),
}
SIZES = ("--slots", "8", "--max-length", "512", "--max-queue", "512")
TIMEOUT_SECONDS = 600


class Asked(NamedTuple):
    """A route and what is sent there."""

    path: str
    body: dict[str, Any]


def mixed(count: int, seed: int) -> list[Asked]:
    """Requests of many kinds, the same ones for the same seed."""
    chance = random.Random(seed)
    beginnings = [words(chance, size) for size in (0, 20, 20, 90, 200)]
    return [one(chance, chance.choice(beginnings)) for _ in range(count)]


def words(chance: random.Random, count: int) -> str:
    return " ".join(chance.choices(WORDS, k=count))


def one(chance: random.Random, beginning: str) -> Asked:
    text = f"{beginning} {words(chance, chance.randint(1, 40))}"
    wish: dict[str, Any] = {
        "max_tokens": chance.randint(1, 40),
        "temperature": chance.choice([0, 0.3, 0.8, 1.4]),
        "top_p": chance.choice([1.0, 0.95, 0.6]),
        "top_k": chance.choice([0, 1, 40]),
        "seed": chance.getrandbits(64),
        "presence_penalty": chance.choice([0, 0, 0.7]),
        "repetition_penalty": chance.choice([1.0, 1.0, 1.2]),
        "stop": chance.choice([None, None, ["e", "."]]),
        "n": chance.choice([1, 1, 1, 2]),
        "stream": chance.random() < 0.5,
        "priority": chance.choice([0, 0, -2, 4]),
    }
    if chance.random() < 0.5:
        said = [{"role": "user", "content": text}]
        more = {"messages": said, "logprobs": True, "top_logprobs": 4}
        return Asked("/v1/chat/completions", {**wish, **more})
    echo = {"echo": True} if chance.random() < 0.2 else {}
    return Asked("/v1/completions", {**wish, "prompt": text, "logprobs": 4, **echo})


async def answer(client: httpx.AsyncClient, asked: Asked) -> str:
    """All choices of an answer with everything in them, as one text.

    Raises:
        RequestFailed: It was refused, or it ended too soon.
    """
    if asked.body["stream"]:
        return json.dumps(await streamed(client, asked), sort_keys=True)
    response = await client.post(asked.path, json=asked.body)
    if response.is_error:
        raise RequestFailed(f"{response.status_code} {response.text[:200]}")
    choices = response.json()["choices"]
    return json.dumps([whole(choice) for choice in choices], sort_keys=True)


async def streamed(client: httpx.AsyncClient, asked: Asked) -> list[dict[str, Any]]:
    made: dict[int, dict[str, Any]] = {}
    async with client.stream("POST", asked.path, json=asked.body) as response:
        if response.is_error:
            said = (await response.aread()).decode(errors="replace")
            raise RequestFailed(f"{response.status_code} {said[:200]}")
        async for event in events(response):
            for choice in event["choices"]:
                one = whole(choice)
                before = made.setdefault(choice["index"], one)
                if before is not one:
                    before["text"] += one["text"]
                    before["logprobs"] += one["logprobs"]
                    before["finish_reason"] = one["finish_reason"]
    return [made[index] for index in sorted(made)]


def whole(choice: dict[str, Any]) -> dict[str, Any]:
    """A choice, or a piece of one, in one form for all routes."""
    said = choice.get("message") or choice.get("delta") or choice
    text = said.get("text") or said.get("content") or ""
    logprobs: list[Any] = []
    given = choice.get("logprobs")
    if given and "content" in given:
        logprobs = given["content"]
    elif given:
        columns = ("tokens", "token_logprobs", "top_logprobs", "text_offset")
        logprobs = [list(row) for row in zip(*(given[c] for c in columns), strict=True)]
    finish = choice.get("finish_reason")
    return {"text": text, "logprobs": logprobs, "finish_reason": finish}


async def ask_all(
    url: str, asked: Sequence[Asked], order: Sequence[int], clients: int
) -> dict[int, str]:
    """The answer to each, with so many in flight at every moment."""
    left, answers = iter(order), {}
    async with httpx.AsyncClient(
        base_url=url, timeout=TIMEOUT_SECONDS, trust_env=False
    ) as client:

        async def ask_in_turn() -> None:
            for index in left:
                answers[index] = await answer(client, asked[index])

        async with asyncio.TaskGroup() as group:
            for _ in range(clients):
                group.create_task(ask_in_turn())
    return answers


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse(arguments)
    model, asked = fetch(args.model), mixed(args.requests, args.seed)
    order = list(range(len(asked)))
    other = random.Random(args.seed + 1).sample(order, len(order))
    differing = 0
    print("| weights | requests | clients | log-probabilities | answers that differ |")
    print("|---|--:|--:|--:|--:|")
    for name in args.only or WEIGHTS:
        flags = WEIGHTS[name]
        with (
            tempfile.TemporaryDirectory() as cache,
            started(model, Path(cache), [*SIZES, *flags, *args.server]) as server,
        ):
            first = asyncio.run(ask_all(server.url, asked, order, args.clients))
            again = asyncio.run(ask_all(server.url, asked, other, args.clients))
        bad = [index for index in order if first[index] != again[index]]
        tokens = sum(
            len(choice["logprobs"])
            for text in first.values()
            for choice in json.loads(text)
        )
        print(f"| {name} | {len(asked)} | {args.clients} | {tokens} | {len(bad)} |")
        for index in bad[:3]:
            print(asked[index], first[index], again[index], sep="\n", file=sys.stderr)
        differing += len(bad)
    if differing:
        raise SystemExit("some answers differ")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--model", default="smollm2-135m-instruct")
    add("--requests", type=int, default=200)
    add("--clients", type=int, default=16)
    add("--seed", type=int, default=0)
    add("--only", action="append", choices=WEIGHTS, help="one of them; may be repeated")
    add("server", nargs="*", help="after --: further arguments of `jaxserver serve`")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
