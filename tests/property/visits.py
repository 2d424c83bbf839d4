"""Requests that come to an engine together, and what each of them gets."""

import dataclasses
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from jaxserver.adapters.engine.text import TextEngine
from jaxserver.ports.types import (
    Chunk,
    FinishReason,
    GenerationRequest,
    TokenLogprob,
    Usage,
)

LONGEST_SECONDS = 120
"""What any answer to a tiny model takes at most, in however large a company."""


class Answer(NamedTuple):
    """Everything of an answer that its request decides."""

    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] | None
    prompt_logprobs: tuple[TokenLogprob, ...] | None
    text: str
    finish_reason: FinishReason | None
    usage: Usage
    seed: int | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Visit:
    """A request, when it comes and whether it stays.

    Attributes:
        patience: Chunks that are read before it is cancelled; None reads all.
    """

    request: GenerationRequest
    delay_seconds: float
    patience: int | None


def gather(chunks: Sequence[Chunk]) -> Answer:
    first, last = chunks[0], chunks[-1]
    entries = [c.logprobs for c in chunks if c.logprobs is not None]
    return Answer(
        token_ids=tuple(token for chunk in chunks for token in chunk.token_ids),
        logprobs=tuple(e for some in entries for e in some) if entries else None,
        prompt_logprobs=first.prompt_logprobs,
        text="".join(chunk.text for chunk in chunks),
        finish_reason=last.finish_reason,
        usage=last.usage,
        seed=last.seed,
    )


def alone(engine: TextEngine, request: GenerationRequest) -> Answer:
    return gather(list(engine.generate(request)))


def in_company(engine: TextEngine, visitors: Sequence[Visit]) -> list[Answer]:
    together = threading.Barrier(len(visitors))
    with ThreadPoolExecutor(len(visitors)) as pool:
        answers = [pool.submit(_visit, engine, v, together) for v in visitors]
        return [answer.result(LONGEST_SECONDS) for answer in answers]


def _visit(engine: TextEngine, visitor: Visit, together: threading.Barrier) -> Answer:
    together.wait()
    time.sleep(visitor.delay_seconds)
    stream = engine.generate(visitor.request)
    if visitor.patience is None:
        return gather(list(stream))
    chunks = [c for _, c in zip(range(visitor.patience), stream, strict=False)]
    stream.cancel()
    return gather([*chunks, *stream])


def assert_as_alone(answer: Answer, expected: Answer) -> None:
    """All of it where it finished; what there is of it where it was cancelled."""
    if answer.finish_reason is not FinishReason.CANCELLED:
        assert answer == expected
        return
    count = len(answer.token_ids)
    assert answer.token_ids == expected.token_ids[:count]
    if answer.logprobs and expected.logprobs:
        assert answer.logprobs == expected.logprobs[:count]
