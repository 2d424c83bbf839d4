"""Whether a server came through: what was sampled while it rested, and what it said."""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

MIB = 2**20
FEWEST_SAMPLES = 6


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """The server's process while nothing is asked of it.

    Attributes:
        seconds: Since it was ready.
        handles: Open files and sockets.
    """

    seconds: float
    resident_bytes: int
    threads: int
    handles: int
    slots_in_use: int
    pages_used: int
    queue_length: int


@dataclasses.dataclass(frozen=True, slots=True)
class Check:
    """One thing that has to hold."""

    name: str
    holds: bool
    said: str


def flat(name: str, values: Sequence[float], slack: float, unit: float = 1) -> Check:
    """Compares thirds: the first is the warm-up, the others' medians count.

    Args:
        name: What the values are.
        values: In the order of time.
        slack: How much the last third's median may be above the middle one's.
        unit: What the values are divided by where they are said.
    """
    if len(values) < FEWEST_SAMPLES:
        return Check(name, False, f"{len(values)} samples, at least {FEWEST_SAMPLES}")
    third = len(values) // 3
    before = statistics.median(values[-2 * third : -third])
    after = statistics.median(values[-third:])
    said = f"{before / unit:,.1f}, then {after / unit:,.1f}; {slack / unit:,.1f} is let"
    return Check(name, after - before <= slack, said)


def at_rest(name: str, values: Sequence[int]) -> Check:
    """Nothing may be held while nothing is asked."""
    return Check(name, not any(values), f"at most {max(values, default=0)}")


def checks_of_samples(samples: Sequence[Sample]) -> list[Check]:
    def each(field: str) -> list[Any]:
        return [getattr(sample, field) for sample in samples]

    resident = each("resident_bytes")
    slack = max(8 * MIB, 0.01 * statistics.median(resident or [0]))
    return [
        flat("resident memory, MiB", resident, slack, MIB),
        flat("threads", each("threads"), 0),
        flat("file handles", each("handles"), 0),
        at_rest("slots in use at rest", each("slots_in_use")),
        at_rest("pages in use at rest", each("pages_used")),
        at_rest("waiting requests at rest", each("queue_length")),
    ]


def checks_of_status(status: Mapping[str, Any]) -> list[Check]:
    """What the server says of itself at the end."""
    none = ("compiles_after_ready", "failed_dispatches", "unsound_rows")
    ready = Check("ready at the end", status["state"] == "ready", status["state"])
    return [ready, *(Check(key, not status[key], str(status[key])) for key in none)]


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """In Markdown."""
    lines = [head, ["---"] * len(head), *([str(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def report(counts: Mapping[tuple[str, str], int], checks: Sequence[Check]) -> str:
    """What was asked, and whether it holds."""
    kinds = sorted({kind for kind, _ in counts})
    outcomes = sorted({outcome for _, outcome in counts})
    asked = [
        (kind, *(counts.get((kind, how), 0) for how in outcomes)) for kind in kinds
    ]
    held = [(each.name, "yes" if each.holds else "NO", each.said) for each in checks]
    return "\n\n".join(
        (
            table(("a client that", *outcomes), asked),
            table(("what has to hold", "holds", "found"), held),
        )
    )
