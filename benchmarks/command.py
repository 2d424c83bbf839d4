"""The command behind `http.py`: which servers and workloads, and where figures go."""

import argparse
import asyncio
import contextlib
import dataclasses
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx

from benchmarks.figures import Figures, Spread, figures
from benchmarks.load import Run, Workload, client_of, drive
from benchmarks.starting import fetch, started

TIMEOUT_SECONDS = 300
HEAD = (
    *("clients", "requests", "prompt", "tokens/s", "tokens/s of one"),
    *("first token p50", "p90", "p99", "inter-token p50", "p90", "p99"),
)


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse(arguments)
    starts: dict[str, float] = {}
    with server(args, starts) as url:
        results = asyncio.run(measure(url, args))
    for name, seconds in starts.items():
        print(f"Ready with {name} compile cache: {seconds:.1f} s.")
    print(table(results))
    if args.json is not None:
        runs = [dataclasses.asdict(result) for result in results]
        args.json.write_text(json.dumps({"ready_seconds": starts, "runs": runs}))
    if any(result.failed for result in results):
        raise SystemExit("some requests failed")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Measures throughput, first-token and inter-token times over HTTP.",
        epilog="What follows -- goes to `jaxserver serve`, as in -- --dtype fp32.",
    )
    add = parser.add_argument
    add("--url", help="a server that runs already; else one is started")
    add("--model", default="smollm2-135m-instruct", help="of the started server")
    add("--slots", default="16", help="of the started server")
    add("--clients", type=counts, default=(1, 16), help="such as 1,4,16,64")
    add("--requests", type=int, help="of each run; else 4 a client, at least 8")
    add("--prompt-tokens", type=int, default=128)
    add("--new-tokens", type=int, default=64)
    add("--json", type=Path, metavar="FILE", help="write the figures there too")
    add("server", nargs="*", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def counts(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


@contextlib.contextmanager
def server(args: argparse.Namespace, starts: dict[str, float]) -> Iterator[str]:
    """The address to measure; a server of ours is started twice, for its two starts."""
    if args.url is not None:
        yield args.url.rstrip("/").removesuffix("/v1")
        return
    model = fetch(args.model)
    flags = ["--slots", args.slots, *args.server]
    with tempfile.TemporaryDirectory() as folder:
        with started(model, Path(folder), flags) as first:
            starts["an empty"] = first.ready_seconds
        with started(model, Path(folder), flags) as second:
            starts["a full"] = second.ready_seconds
            yield second.url


async def measure(url: str, args: argparse.Namespace) -> list[Figures]:
    """Runs one workload after the other, after one request that is not counted."""
    async with client_of(url, TIMEOUT_SECONDS) as client:
        asked = Asked(args)
        await run(client, asked, clients=1, requests=1)
        return [
            figures(
                await run(client, asked, clients, args.requests or max(8, 4 * clients))
            )
            for clients in args.clients
        ]


@dataclasses.dataclass
class Asked:
    """What has been asked, so that nothing is asked twice."""

    args: argparse.Namespace
    requests: int = 0


async def run(
    client: httpx.AsyncClient, asked: Asked, clients: int, requests: int
) -> Run:
    workload = Workload(
        clients=clients,
        requests=requests,
        prompt_tokens=asked.args.prompt_tokens,
        new_tokens=asked.args.new_tokens,
        asked_before=asked.requests,
    )
    asked.requests += requests
    done = await drive(client, workload)
    for failure in sorted(set(done.failures)):
        print(f"failed: {failure}", file=sys.stderr)
    return done


def table(results: Sequence[Figures]) -> str:
    """The figures in Markdown; times in milliseconds."""
    rows = [HEAD, ("--:",) * len(HEAD), *(row(result) for result in results)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def row(result: Figures) -> tuple[str, ...]:
    of_one = result.decode_tok_s
    return (
        str(result.clients),
        str(result.completed),
        f"{result.prompt_tokens:.0f}",
        f"{result.output_tok_s:.1f}",
        "-" if of_one is None else f"{of_one.p50:.1f}",
        *times(result.ttft_ms),
        *times(result.itl_ms),
    )


def times(spread: Spread | None) -> tuple[str, ...]:
    if spread is None:
        return ("-",) * 3
    return tuple(f"{value:.1f}" for value in (spread.p50, spread.p90, spread.p99))
