"""What the engine's thread is given and what it gives back: token ids only."""

import dataclasses
from types import MappingProxyType
from typing import Any, NamedTuple, Self, TypeAlias

import numpy as np

from jaxserver.core.config import EngineConfig
from jaxserver.core.prefix_tree import Tokens
from jaxserver.core.schedule import QueuedRequest
from jaxserver.ports.errors import JaxServerError
from jaxserver.ports.model import ModelFns
from jaxserver.ports.processors import Processors
from jaxserver.ports.types import FinishReason, SamplingParams

HostArray: TypeAlias = np.ndarray[Any, np.dtype[Any]]


class Limits(NamedTuple):
    """What a request may ask for.

    Attributes:
        max_len: Of what the decoder holds, its prompt and the answer.
        max_input: Of what an encoder reads; None where there is none, and the prompt is
            the decoder's.
        decoder_prompt: Of what the decoder reads first where there is an encoder.
        can_score: A prompt's own tokens can have log-probabilities.
        processors: The logits processors that can be named.
    """

    max_len: int
    max_input: int | None = None
    decoder_prompt: int = 0
    can_score: bool = True
    processors: Processors = MappingProxyType({})

    @classmethod
    def of(cls, fns: ModelFns, engine: EngineConfig) -> Self:
        """What a model's functions allow."""
        reads = fns.encode is not None
        return cls(
            max_len=fns.max_len,
            max_input=fns.encoder_lengths[-1] if reads else None,
            decoder_prompt=len(fns.decoder_prompt) if reads else 0,
            can_score=engine.score_length is not None,
            processors=dict(fns.processors),
        )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TokenRequest:
    """A request that is ready to run.

    Attributes:
        prompt: What is prefilled, or encoded where there is an encoder.
        held: Tokens that the decoder holds before the answer.
        sampling: Complete: nothing is left to the server's defaults.
        seed: What to draw with.
        limit: Most tokens of prompt and answer together.
        end_ids: Tokens that end the answer.
        streaming: Somebody reads along.
        scored: The log-probabilities of the prompt's tokens are wanted.
        choice: Which of several answers to the prompt this is.
        drawn: The beginning of the answer, which its reader has already.
        priority: Lower is sooner.
        deadline: By the engine's clock, when nobody wants the answer any more.
    """

    request_id: int
    prompt: tuple[int, ...]
    held: int
    sampling: SamplingParams
    seed: int
    limit: int
    end_ids: frozenset[int]
    streaming: bool
    scored: bool = False
    choice: int = 0
    drawn: tuple[int, ...] = ()
    priority: int = 0
    deadline: float | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Logprobs:
    """Log-probabilities of some tokens, and of the likeliest in their places."""

    chosen: HostArray
    top_ids: HostArray
    top: HostArray

    def without(self, count: int) -> "Logprobs":
        """All but those of the first tokens."""
        return Logprobs(
            chosen=self.chosen[count:],
            top_ids=self.top_ids[count:],
            top=self.top[count:],
        )


class KeptPages(NamedTuple):
    """What some pages of the cache hold of a row.

    Attributes:
        length: How many of the row's tokens.
        leaves: By page, the arrays of the cache, their last dimension being tokens;
            the last page's may be cut short.
    """

    length: int
    leaves: tuple[tuple[HostArray, ...], ...]


NO_PAGES = KeptPages(0, ())


class Scores(NamedTuple):
    """What some tokens of a prompt, from the one at `start` on, are worth."""

    start: int
    token_ids: tuple[int, ...]
    logprobs: Logprobs


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TokenEvent:
    """What one dispatch brought one request.

    Attributes:
        scores: Of the prompt, where they were asked for; they may come again.
        end: Why it is finished, or with what it failed; None while it goes on.
        admitted: It has got a slot, and so many tokens of its prompt were there.
    """

    request_id: int
    token_ids: tuple[int, ...] = ()
    logprobs: Logprobs | None = None
    end: FinishReason | JaxServerError | None = None
    admitted: int | None = None
    scores: Scores | None = None

    def without(self, count: int) -> "TokenEvent":
        """All but its first tokens."""
        rest = None if self.logprobs is None else self.logprobs.without(count)
        return dataclasses.replace(
            self, token_ids=self.token_ids[count:], logprobs=rest
        )


def queued_request(request: TokenRequest, known: Tokens, now: float) -> QueuedRequest:
    """What the scheduler is told of one, some of whose answer is known."""
    return QueuedRequest(
        request_id=request.request_id,
        tokens=request.prompt + known,
        limit=request.limit,
        streaming=request.streaming,
        priority=request.priority,
        queued_seconds=now,
        deadline=request.deadline,
        num_drawn=len(known),
        scored=request.scored,
    )
