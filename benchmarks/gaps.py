"""How long streams stand still when a long prompt arrives.

Eight streams run alone, and then again while a prompt of 1,500 tokens comes into their
midst. Counted are the times between two deliveries to one stream.
"""

import argparse
import asyncio
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

if __name__ == "__main__":
    # This folder would be first on the path, and `http.py` the library's own `http`.
    sys.path[0] = str(Path(__file__).parents[1])

import httpx

from benchmarks.load import events
from benchmarks.starting import fetch, started
from benchmarks.texts import WORDS, WORDS_PER_TOKEN

TIMES = 3
"""The worst wait with the long prompt, in medians without it, at most."""
TIMEOUT_SECONDS = 600
SETTLE_SECONDS = 3.0


class Gaps(NamedTuple):
    """Seconds between two deliveries of one stream, of all streams together.

    Attributes:
        first_seconds: Of the long prompt, from its sending to its first token.
    """

    seconds: list[float]
    first_seconds: float | None


async def stamps(
    client: httpx.AsyncClient, prompt: str, new_tokens: int
) -> list[float]:
    """When each delivery came, the sending first."""
    body = {
        "prompt": prompt,
        "max_tokens": new_tokens,
        "temperature": 0.8,
        "seed": 1,
        "ignore_eos": True,
        "logprobs": 0,
        "stream": True,
    }
    times = [time.perf_counter()]
    async with client.stream("POST", "/v1/completions", json=body) as response:
        response.raise_for_status()
        async for event in events(response):
            if any(choice["logprobs"] for choice in event["choices"]):
                times.append(time.perf_counter())
    return times


async def run(url: str, args: argparse.Namespace, *, with_long: bool) -> Gaps:
    chance = random.Random(args.seed + with_long)
    size = round(args.prompt_tokens * WORDS_PER_TOKEN)
    long = " ".join(chance.choices(WORDS, k=size))
    prompts = [" ".join(chance.choices(WORDS, k=20)) for _ in range(args.streams)]
    async with (
        httpx.AsyncClient(
            base_url=url, timeout=TIMEOUT_SECONDS, trust_env=False
        ) as client,
        asyncio.TaskGroup() as group,
    ):
        streams = [
            group.create_task(stamps(client, prompt, args.new_tokens))
            for prompt in prompts
        ]
        await asyncio.sleep(SETTLE_SECONDS)
        came = time.perf_counter()
        late = group.create_task(stamps(client, long, 2)) if with_long else None
    times = [[t for t in stream.result()[1:] if t > came - 1] for stream in streams]
    end = min(stream[-1] for stream in times)
    gaps = [b - a for stream in times for a, b in pairwise(stream) if b <= end]
    first = None
    if late is not None:
        sent, first_token, *_ = late.result()
        first = first_token - sent
        if first_token > end:
            raise SystemExit("the streams ended first: ask for more --new-tokens")
    return Gaps(gaps, first)


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse(arguments)
    flags = ["--slots", str(args.streams + 1), "--no-prefix-cache", *args.server]
    with (
        tempfile.TemporaryDirectory() as cache,
        started(fetch(args.model), Path(cache), flags) as server,
    ):
        asyncio.run(run(server.url, args, with_long=False))
        alone = asyncio.run(run(server.url, args, with_long=False))
        beside = asyncio.run(run(server.url, args, with_long=True))
    median, worst = statistics.median(alone.seconds), max(beside.seconds)
    print("| deliveries to a stream | median, ms | worst, ms |")
    print("|---|--:|--:|")
    for name, gaps in (("alone", alone), ("with a long prompt", beside)):
        middle, most = statistics.median(gaps.seconds), max(gaps.seconds)
        print(f"| {name} | {1000 * middle:.0f} | {1000 * most:.0f} |")
    print(f"The long prompt's first token came after {beside.first_seconds:.2f} s.")
    print(f"The worst wait was {worst / median:.2f} medians of the streams alone.")
    if worst > TIMES * median:
        raise SystemExit(f"expected at most {TIMES}")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--model", default="smollm2-135m-instruct")
    add("--streams", type=int, default=8)
    add("--prompt-tokens", type=int, default=1500)
    add("--new-tokens", type=int, default=300)
    add("--seed", type=int, default=0)
    add("server", nargs="*", help="after --: further arguments of `jaxserver serve`")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
