"""Leaves a server to random clients for a while, and looks whether it came through.

Some clients keep to the rules, on every route; others leave, stall, upload slowly or
talk rubbish, and in each storm 200 connections come at once. Between the storms the
server rests, and its process is looked at.
"""

import argparse
import asyncio
import dataclasses
import json
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

if __name__ == "__main__":
    # This folder would be first on the path, and `http.py` the library's own `http`.
    sys.path[0] = str(Path(__file__).parents[1])

import httpx
import psutil

from benchmarks.soak_clients import (
    CLIENTS,
    PATIENCE_SECONDS,
    Tally,
    Town,
    comes_in_crowds,
    let,
)
from benchmarks.soak_verdict import (
    FEWEST_SAMPLES,
    Check,
    Sample,
    checks_of_samples,
    checks_of_status,
    report,
)
from benchmarks.starting import fetch, started

AT_A_TIME = 24
"""Clients of a storm, the crowds aside."""
STORMS = 30
LONGEST_STORM_SECONDS = 30.0
REST_SECONDS = 60.0
SETTLE_SECONDS = 1.0
LOOKS = 5
SIZES = ("--max-length", "512", "--max-queue", "64")
FIXED = {
    "prompt": "The quick brown fox",
    "max_tokens": 32,
    "temperature": 0.9,
    "seed": 20_240,
    "logprobs": 5,
    "ignore_eos": True,
}
"""What is asked before and after."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Soaked:
    """All that is known after a run."""

    tally: Tally
    samples: tuple[Sample, ...]
    checks: tuple[Check, ...]


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse(arguments)
    flags = [*SIZES, "--slots", args.slots, *args.server]
    with (
        tempfile.TemporaryDirectory() as cache,
        started(fetch(args.model), Path(cache), flags) as server,
    ):
        process = psutil.Process(server.pid)
        done = asyncio.run(soak(server.url, process, args.minutes * 60, args.seed))
    print(report(done.tally.counts, done.checks))
    for wrong in done.tally.wrongs[:20]:
        print(f"wrong: {wrong}", file=sys.stderr)
    if args.json is not None:
        args.json.write_text(json.dumps(as_json(done)))
    if not all(check.holds for check in done.checks):
        raise SystemExit("not everything holds")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="What follows -- goes to `jaxserver serve`, as in -- --dtype fp32.",
    )
    add = parser.add_argument
    add("--minutes", type=float, default=20.0)
    add("--seed", type=int, default=0, help="of the clients")
    add("--model", default="smollm2-135m-instruct", help="a folder, file or name")
    add("--slots", default="8")
    add("--json", type=Path, metavar="FILE", help="write everything there too")
    add("server", nargs="*", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


async def soak(url: str, process: psutil.Process, seconds: float, seed: int) -> Soaked:
    """Storms and rests until the time is over."""
    began, tally = time.monotonic(), Tally()
    samples: list[Sample] = []
    before = await ask_fixed(url)
    storm_seconds = min(LONGEST_STORM_SECONDS, seconds / STORMS)
    while len(samples) < FEWEST_SAMPLES or time.monotonic() - began < seconds:
        rng = random.Random(f"{seed} {len(samples)}")
        await storm(url, tally, rng, storm_seconds)
        status = await rest(url)
        samples.append(await sample(status, process, time.monotonic() - began))
    after = await ask_fixed(url)
    equal = Check("the same answer before and after", before == after, f"{after!r:.60}")
    wrongs = Check("no wrong answer", not tally.wrongs, f"{len(tally.wrongs)} of them")
    checks = [wrongs, equal, *checks_of_samples(samples), *checks_of_status(status)]
    return Soaked(tally=tally, samples=tuple(samples), checks=tuple(checks))


def client(url: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        base_url=url,
        timeout=PATIENCE_SECONDS,
        limits=httpx.Limits(max_connections=None),
        trust_env=False,
    )


async def ask_fixed(url: str) -> Any:
    """The text, tokens and log-probabilities of the fixed request."""
    async with client(url) as http:
        answer = await http.post("/v1/completions", json=FIXED)
        answer.raise_for_status()
        return answer.json()["choices"]


async def storm(url: str, tally: Tally, rng: random.Random, seconds: float) -> None:
    """Some clients at a time, one after the other, and a crowd in the middle of it."""
    end = time.monotonic() + seconds
    address = urlsplit(url)
    where = (str(address.hostname), int(address.port or 80))
    kinds = [*CLIENTS]
    weights = [weight for _, weight in CLIENTS.values()]

    async def come_in_turn(town: Town) -> None:
        while time.monotonic() < end:
            (kind,) = town.rng.choices(kinds, weights)
            await let(town, kind, CLIENTS[kind][0])

    async with client(url) as http, asyncio.TaskGroup() as group:
        towns = [
            Town(http=http, address=where, rng=random.Random(rng.random()), tally=tally)
            for _ in range(AT_A_TIME + 1)
        ]
        for town in towns[1:]:
            group.create_task(come_in_turn(town))
        await asyncio.sleep(rng.uniform(0, seconds))
        await let(towns[0], "comes in crowds", comes_in_crowds)


async def rest(url: str) -> dict[str, Any]:
    """Waits until nothing is held any more, or for as long as that may take."""
    end = time.monotonic() + REST_SECONDS
    held = ("slots_in_use", "queue_length", "pages_used")
    while True:
        await asyncio.sleep(SETTLE_SECONDS)
        async with client(url) as http:
            status: dict[str, Any] = (await http.get("/status")).json()
        if time.monotonic() > end or not any(status[key] for key in held):
            return status


async def sample(
    status: dict[str, Any], process: psutil.Process, seconds: float
) -> Sample:
    """A connection takes a moment to be gone, so the fewest handles of some looks."""
    handles = []
    for _ in range(LOOKS):
        handles.append(process.num_fds())
        await asyncio.sleep(SETTLE_SECONDS / LOOKS)
    return Sample(
        seconds=seconds,
        resident_bytes=process.memory_info().rss,
        threads=process.num_threads(),
        handles=min(handles),
        slots_in_use=status["slots_in_use"],
        pages_used=status["pages_used"],
        queue_length=status["queue_length"],
    )


def as_json(done: Soaked) -> dict[str, Any]:
    return {
        "counts": {f"{kind}: {how}": n for (kind, how), n in done.tally.counts.items()},
        "wrongs": done.tally.wrongs,
        "samples": [dataclasses.asdict(each) for each in done.samples],
        "checks": [dataclasses.asdict(each) for each in done.checks],
    }


if __name__ == "__main__":
    main()
