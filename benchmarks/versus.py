"""Measures this server and others at the same work, in turns, on one machine."""

import argparse
import contextlib
import json
import os
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    # This folder would be first on the path, and `http.py` the library's own `http`.
    sys.path[0] = str(Path(__file__).parents[1])

from benchmarks.contestants import CONTESTANTS, Measure, Missing, Sample, Setting
from benchmarks.load import Workload
from benchmarks.starting import fetch
from benchmarks.texts import TEXTS
from jaxserver.adapters.checkpoints.gguf import open_gguf
from jaxserver.core.families.llama import from_gguf

OURS = "jaxserver"
HEAD = ("", "clients", "tokens/s", "first token, ms", "ours to it", "first to its")


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse(arguments)
    with contextlib.ExitStack() as stack:
        field = dict(entered(stack, setting(args), args.only))
        rounds = [one_round(field, args, nth) for nth in range(args.rounds)]
    for ours in [name for name in field if name.startswith(OURS)]:
        print(f"\nOurs is {ours}:\n\n{table(rounds, ours)}")
    if args.json is not None:
        args.json.write_text(json.dumps({"rounds": rounds}, indent=1))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="What follows -- goes to `jaxserver serve`, as in -- --quantize int8.",
    )
    add = parser.add_argument
    add("--model", default="smollm2-135m-instruct", help="packaged, or a GGUF file")
    add("--only", type=names, default=tuple(CONTESTANTS), help="some, by name, with ;")
    add("--peer-python", type=pair, action="append", default=[], metavar="NAME=PATH")
    add("--clients", type=counts, default=(1, 16))
    add("--turns", type=int, default=4, help="requests of a client, each round")
    add("--rounds", type=int, default=5)
    add("--prompt-tokens", type=int, default=128)
    add("--new-tokens", type=int, default=64)
    add("--text", choices=TEXTS, default="words", help="what servers are asked")
    add("--json", type=Path, metavar="FILE", help="write every round there too")
    add("serve", nargs="*", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def counts(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def names(text: str) -> tuple[str, ...]:
    """Contestants; ours is always one."""
    chosen = {OURS, *(part.strip() for part in text.split(";"))}
    unknown = chosen - CONTESTANTS.keys()
    if unknown:
        known = "; ".join(CONTESTANTS)
        raise argparse.ArgumentTypeError(f"no {min(unknown)!r} among {known}")
    return tuple(name for name in CONTESTANTS if name in chosen)


def pair(text: str) -> tuple[str, str]:
    name, _, path = text.partition("=")
    return name, path


def setting(args: argparse.Namespace) -> Setting:
    file = Path(fetch(args.model))
    return Setting(
        file=file,
        config=sizes(file),
        slots=max(args.clients),
        threads=os.cpu_count() or 1,
        serve=args.serve,
        pythons=dict(args.peer_python),
    )


def sizes(file: Path) -> dict[str, Any]:
    """The model's, as transformers names them."""
    checkpoint = open_gguf(file)
    ours = from_gguf(checkpoint.config, checkpoint.tensors.names(), ())
    return {
        "vocab_size": ours.vocab_size,
        "hidden_size": ours.embed,
        "intermediate_size": ours.mlp,
        "num_hidden_layers": ours.num_layers,
        "num_attention_heads": ours.num_heads,
        "num_key_value_heads": ours.num_kv_heads,
        "tie_word_embeddings": ours.tied,
    }


def entered(
    stack: contextlib.ExitStack, setting: Setting, chosen: Sequence[str]
) -> Iterator[tuple[str, Measure]]:
    """Those that are there; the others are said."""
    for name in chosen:
        try:
            yield name, stack.enter_context(CONTESTANTS[name](setting))
        except Missing as error:
            print(f"{name} is missing: {error}", flush=True)


Round = Mapping[str, Mapping[int, Sample]]
"""Of each contestant and number of clients."""


def one_round(
    field: Mapping[str, Measure], args: argparse.Namespace, nth: int
) -> Round:
    """Each in its turn, another one first each time; the first round warms up too."""
    order = [*field][nth % len(field) :] + [*field][: nth % len(field)]
    done: dict[str, dict[int, Sample]] = {name: {} for name in field}
    for clients in args.clients:
        for name in order:
            asked = workload(args, clients, nth)
            if nth == 0:
                field[name](workload(args, clients, -1))
            done[name][clients] = field[name](asked)
            print(f"round {nth}, {clients} clients, {name}: {done[name][clients]}")
    return done


def workload(args: argparse.Namespace, clients: int, nth: int) -> Workload:
    """What is asked in a round, which was not asked before."""
    requests = clients * args.turns
    before = sum(args.clients) * args.turns * (nth + 1)
    return Workload(
        clients=clients,
        requests=requests,
        prompt_tokens=args.prompt_tokens,
        new_tokens=args.new_tokens,
        text=args.text,
        asked_before=before + sum(c * args.turns for c in args.clients if c < clients),
    )


def table(rounds: Sequence[Round], ours: str = OURS) -> str:
    """Medians, and the medians of the rounds' own ratios to one, in Markdown."""
    rows = [HEAD, ("---",) + ("--:",) * (len(HEAD) - 1)]
    rows += [
        row(name, clients, rounds, ours)
        for name in rounds[0]
        for clients in rounds[0][name]
    ]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def row(name: str, clients: int, rounds: Sequence[Round], ours: str) -> tuple[str, ...]:
    its = [each[name][clients] for each in rounds]
    both = list(zip([each[ours][clients] for each in rounds], its, strict=True))
    speed = statistics.median(sample.tokens_per_second for sample in its)
    first = statistics.median(sample.first_seconds for sample in its)
    faster = statistics.median(
        a.tokens_per_second / b.tokens_per_second for a, b in both
    )
    sooner = statistics.median(a.first_seconds / b.first_seconds for a, b in both)
    figures = (f"{speed:.1f}", f"{1000 * first:.0f}", f"{faster:.2f}", f"{sooner:.2f}")
    return (name, str(clients), *figures)


if __name__ == "__main__":
    main()
