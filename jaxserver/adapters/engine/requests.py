"""What the engine's thread is given and what it gives back: token ids only."""

import dataclasses
from typing import Any, NamedTuple, Self, TypeAlias

import numpy as np

from jaxserver.ports.errors import JaxServerError
from jaxserver.ports.model import ModelFns
from jaxserver.ports.types import FinishReason, SamplingParams

HostArray: TypeAlias = np.ndarray[Any, np.dtype[Any]]


class Lengths(NamedTuple):
    """How long prompts and answers may be.

    Attributes:
        max_len: Of what the decoder holds, its prompt and the answer.
        max_input: Of what an encoder reads; None where there is none, and the prompt is
            the decoder's.
        decoder_prompt: Of what the decoder reads first where there is an encoder.
    """

    max_len: int
    max_input: int | None = None
    decoder_prompt: int = 0

    @classmethod
    def of(cls, fns: ModelFns) -> Self:
        """What a model's functions allow."""
        if fns.encode is None:
            return cls(fns.max_len)
        return cls(fns.max_len, fns.encoder_lengths[-1], len(fns.decoder_prompt))


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


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TokenEvent:
    """What one dispatch brought one request.

    Attributes:
        end: Why it is finished, or with what it failed; None while it goes on.
        admitted: It has got a slot, and so many tokens of its prompt were there.
    """

    request_id: int
    token_ids: tuple[int, ...] = ()
    logprobs: Logprobs | None = None
    end: FinishReason | JaxServerError | None = None
    admitted: int | None = None

    def without(self, count: int) -> "TokenEvent":
        """All but its first tokens."""
        rest = None if self.logprobs is None else self.logprobs.without(count)
        return dataclasses.replace(
            self, token_ids=self.token_ids[count:], logprobs=rest
        )
