"""How long a server takes from the start of its process until it is ready.

With an empty cache of compiled code, and with the one that the start before has left;
the model's file is there already. Memory is what the process holds once it is ready,
and what of: the weights and the cache as it says itself, files that are mapped into
memory, which are libraries, and the rest, which is Python and compiled code.
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    # This folder would be first on the path, and `http.py` the library's own `http`.
    sys.path[0] = str(Path(__file__).parents[1])

import httpx
import psutil

from benchmarks.starting import Started, fetch, started

MIB = 2**20


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse(arguments)
    model = fetch(args.model)
    flags = ["--slots", args.slots, *args.server]
    seconds: dict[str, list[float]] = {"empty": [], "full": []}
    held: list[dict[str, float]] = []
    for _ in range(args.rounds):
        with tempfile.TemporaryDirectory() as folder:
            for cache in ("empty", "full"):
                with started(model, Path(folder), flags) as server:
                    seconds[cache].append(server.ready_seconds)
                    held.append(resident(server))
    print("| cache of compiled code | starts | ready after, s | at most |")
    print("|---|--:|--:|--:|")
    for cache, each in seconds.items():
        middle, most = statistics.median(each), max(each)
        print(f"| {cache} | {len(each)} | {middle:.1f} | {most:.1f} |")
    middle_of = {
        part: f"{statistics.median(one[part] for one in held):.0f}" for part in held[0]
    }
    print(f"\n| {' | '.join(('MiB', *middle_of))} |")
    print(f"|---|{'--:|' * len(middle_of)}")
    print(f"| resident | {' | '.join(middle_of.values())} |")
    if args.json is not None:
        written = {"ready_seconds": seconds, "resident_mib": held}
        args.json.write_text(json.dumps(written))


def resident(server: Started) -> dict[str, float]:
    """MiB in all, and of what."""
    memory = psutil.Process(server.pid).memory_info()
    planned = httpx.get(f"{server.url}/status").json()["memory"]
    parts = {
        "weights": planned["weights"],
        "cache": planned["cache"],
        # Where the system tells it.
        "mapped files": getattr(memory, "shared", 0),
    }
    rest = memory.rss - sum(parts.values())
    all_parts = {"in all": memory.rss, **parts, "the rest": rest}
    return {part: size / MIB for part, size in all_parts.items()}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog="What follows -- goes to `jaxserver serve`."
    )
    add = parser.add_argument
    add("--model", default="smollm2-135m-instruct")
    add("--slots", default="8")
    add("--rounds", type=int, default=3)
    add("--json", type=Path, metavar="FILE", help="write every start there too")
    add("server", nargs="*", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
