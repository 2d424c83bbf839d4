"""How many tokens a second the engine and HTTP move when the model costs nothing.

The server has one core to itself, this program the others. Answers are greedy, the same
letters over and over, in blocks of eight tokens, one event a block.
"""

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

if __name__ == "__main__":
    # This folder would be first on the path, and `http.py` the library's own `http`.
    sys.path[0] = str(Path(__file__).parents[1])

import psutil

from benchmarks.random_model import write_random_model
from benchmarks.starting import Started, started

SMALLEST: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 256,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
FREE = Path(__file__).with_name("serve_free.py")
BLOCK = 8
LEAST = 20_000
"""Tokens a second on one core."""
DATA, DONE = b"data: ", b"data: [DONE]"


class Heard(NamedTuple):
    """What one stream brought, and in how many events besides that of its usage."""

    tokens: int
    events: int


async def listen(url: str, new_tokens: int, nth: int) -> Heard:
    """Asks for an answer, and does no more with it than to count."""
    host, port = urlsplit(url).hostname, urlsplit(url).port
    reader, writer = await asyncio.open_connection(host, port)
    asked = {
        "prompt": f"stream {nth:02}",
        "max_tokens": new_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    body = json.dumps(asked).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n"
    kind = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write((head + kind).encode() + body)
    events, last = 0, b"null"
    while line := await reader.readline():
        if line.startswith(DONE):
            break
        if line.startswith(DATA):
            events, last = events + 1, line.removeprefix(DATA)
    writer.close()
    usage = (json.loads(last) or {}).get("usage")
    if usage is None:
        raise SystemExit(f"a stream ended with {last.decode()!r} in place of its usage")
    return Heard(usage["completion_tokens"], events - 1)


async def listen_to_all(url: str, args: argparse.Namespace) -> list[Heard]:
    streams = range(args.streams)
    return await asyncio.gather(*(listen(url, args.new_tokens, n) for n in streams))


def measure(server: Started, args: argparse.Namespace) -> dict[str, float]:
    """From the first request to the last answer's end, after a round that warms up."""
    process = psutil.Process(server.pid)
    asyncio.run(listen_to_all(server.url, args))
    before, began = sum(process.cpu_times()[:2]), time.perf_counter()
    heard = asyncio.run(listen_to_all(server.url, args))
    seconds = time.perf_counter() - began
    used = sum(process.cpu_times()[:2]) - before
    tokens = sum(one.tokens for one in heard)
    return {
        "tokens": tokens,
        "tokens_per_event": tokens / sum(one.events for one in heard),
        "tokens_per_second": tokens / seconds,
        "core_share": used / seconds,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse(arguments)
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise SystemExit("it takes two cores: one for the server, one for the clients")
    flags = ["--slots", str(args.streams), "--max-stream-tokens", str(BLOCK)]
    flags += ["--max-length", "2048", *args.server]
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        write_random_model(model, SMALLEST)
        os.sched_setaffinity(0, cores[:1])  # the server's process inherits it
        cache, program = Path(folder) / "cache", (sys.executable, str(FREE))
        with started(str(model), cache, flags, program) as server:
            os.sched_setaffinity(0, cores[1:])
            found = measure(server, args)
    print("| streams | tokens/s | tokens an event | of the core |")
    print("|--:|--:|--:|--:|")
    shown = (f"{found['tokens_per_second']:.0f}", f"{found['tokens_per_event']:.1f}")
    print(f"| {args.streams} | {' | '.join(shown)} | {found['core_share']:.0%} |")
    if args.json is not None:
        args.json.write_text(json.dumps(found))
    if found["tokens_per_second"] < LEAST:
        raise SystemExit(f"expected at least {LEAST} tokens/s")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog="What follows -- goes to `jaxserver serve`."
    )
    add = parser.add_argument
    add("--streams", type=int, default=64)
    add("--new-tokens", type=int, default=1024)
    add("--json", type=Path, metavar="FILE", help="write the figures there too")
    add("server", nargs="*", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
