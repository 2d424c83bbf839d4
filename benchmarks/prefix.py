"""What a long beginning costs that many prompts share, and if it changes an answer.

Twenty prompts that begin with the same 1,500 tokens, one after the other: to a server
that keeps beginnings and to one that does not. Each time from the beginning of a
request to its first token; and each answer with its log-probabilities compared between
the two.
"""

import argparse
import asyncio
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

if __name__ == "__main__":
    # This folder would be first on the path, and `http.py` the library's own `http`.
    sys.path[0] = str(Path(__file__).parents[1])

import httpx

from benchmarks.invariance import whole
from benchmarks.load import events
from benchmarks.starting import fetch, started
from benchmarks.texts import WORDS, WORDS_PER_TOKEN

SHARE = 1 / 5
"""Of the first request's time to its first token, what each later one may take."""
TIMEOUT_SECONDS = 600


class Timed(NamedTuple):
    """An answer as one text, and when its first token was there."""

    answer: str
    first_seconds: float


async def ask(client: httpx.AsyncClient, prompt: str) -> Timed:
    body = {
        "prompt": prompt,
        "max_tokens": 8,
        "temperature": 0.8,
        "seed": 1,
        "logprobs": 5,
        "stream": True,
    }
    pieces: list[dict[str, Any]] = []
    began, first = time.perf_counter(), 0.0
    async with client.stream("POST", "/v1/completions", json=body) as response:
        response.raise_for_status()
        async for event in events(response):
            first = first or time.perf_counter() - began
            pieces += [whole(choice) for choice in event["choices"]]
    entries = [entry for piece in pieces for entry in piece["logprobs"]]
    text = "".join(piece["text"] for piece in pieces)
    return Timed(json.dumps([text, entries]), first)


async def ask_all(url: str, prompts: Sequence[str]) -> list[Timed]:
    """One after the other, after a short one that is not counted."""
    async with httpx.AsyncClient(
        base_url=url, timeout=TIMEOUT_SECONDS, trust_env=False
    ) as client:
        await ask(client, "Hello")
        return [await ask(client, prompt) for prompt in prompts]


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse(arguments)
    chance = random.Random(args.seed)
    size = round(args.prompt_tokens * WORDS_PER_TOKEN)
    beginning = " ".join(chance.choices(WORDS, k=size))
    prompts = [
        f"{beginning} {' '.join(chance.choices(WORDS, k=6))}"
        for _ in range(args.requests)
    ]
    model, done = fetch(args.model), {}
    for flag in ("--prefix-cache", "--no-prefix-cache"):
        with (
            tempfile.TemporaryDirectory() as cache,
            started(model, Path(cache), [flag, *args.server]) as server,
        ):
            done[flag] = asyncio.run(ask_all(server.url, prompts))
    kept, afresh = done["--prefix-cache"], done["--no-prefix-cache"]
    first, *later = [timed.first_seconds for timed in kept]
    bad = sum(a.answer != b.answer for a, b in zip(kept, afresh, strict=True))
    without = statistics.median(timed.first_seconds for timed in afresh)
    print("| first token of | seconds |")
    print("|---|--:|")
    print(f"| the first prompt | {first:.3f} |")
    print(f"| the later ones, median | {statistics.median(later):.3f} |")
    print(f"| the later ones, worst | {max(later):.3f} |")
    print(f"| all, where nothing is kept, median | {without:.3f} |")
    print(f"The worst later one took {max(later) / first:.3f} of the first.")
    print(f"{bad} of {len(prompts)} answers differ between the two servers.")
    if bad or max(later) > SHARE * first:
        raise SystemExit(f"expected no difference, and at most {SHARE} of the first")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--model", default="smollm2-135m-instruct")
    add("--requests", type=int, default=20)
    add("--prompt-tokens", type=int, default=1500)
    add("--seed", type=int, default=0)
    add("server", nargs="*", help="after --: further arguments of `jaxserver serve`")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
