"""What a run comes to, in figures whose definitions are written here once."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from benchmarks.load import Answer, Run


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Percentiles, with straight lines between the values that there are."""

    p50: float
    p90: float
    p99: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """One run.

    Attributes:
        prompt_tokens: Mean length of the prompts, the chat template counted; 0 where
            the server does not say.
        output_tok_s: Tokens of all answers, divided by the time of the whole run.
        decode_tok_s: Per answer, its tokens after the first, divided by the time from
            its first piece of text to its last.
        ttft_ms: From the beginning of a request to its first piece of text.
        itl_ms: Per answer, the time from its first piece of text to its last, divided
            by its tokens after the first.
    """

    clients: int
    completed: int
    failed: int
    prompt_tokens: float
    output_tok_s: float
    decode_tok_s: Spread | None
    ttft_ms: Spread | None
    itl_ms: Spread | None


def figures(run: Run) -> Figures:
    timed = [answer for answer in run.answers if answer.tokens > 1 and _seconds(answer)]
    lengths = [a.prompt_tokens for a in run.answers if a.prompt_tokens is not None]
    return Figures(
        clients=run.workload.clients,
        completed=len(run.answers),
        failed=len(run.failures),
        prompt_tokens=float(np.mean(lengths)) if lengths else 0.0,
        output_tok_s=sum(answer.tokens for answer in run.answers) / run.wall_seconds,
        decode_tok_s=spread([(a.tokens - 1) / _seconds(a) for a in timed]),
        ttft_ms=spread([1000 * (a.stamps[0] - a.sent) for a in run.answers]),
        itl_ms=spread([1000 * _seconds(a) / (a.tokens - 1) for a in timed]),
    )


def spread(values: Sequence[float]) -> Spread | None:
    """None where there are no values."""
    if not values:
        return None
    p50, p90, p99 = (float(value) for value in np.percentile(values, (50, 90, 99)))
    return Spread(p50=p50, p90=p90, p99=p99)


def _seconds(answer: Answer) -> float:
    return answer.stamps[-1] - answer.stamps[0]
