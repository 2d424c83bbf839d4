"""What the engine's thread is given and what it gives back: token ids only."""

import dataclasses
from typing import Any, TypeAlias

import numpy as np

from jaxserver.ports.errors import JaxServerError
from jaxserver.ports.types import FinishReason, SamplingParams

HostArray: TypeAlias = np.ndarray[Any, np.dtype[Any]]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TokenRequest:
    """A request that is ready to run.

    Attributes:
        sampling: Complete: nothing is left to the server's defaults.
        seed: What to draw with.
        limit: Most tokens of prompt and answer together.
        end_ids: Tokens that end the answer.
        streaming: Somebody reads along.
    """

    request_id: int
    prompt: tuple[int, ...]
    sampling: SamplingParams
    seed: int
    limit: int
    end_ids: frozenset[int]
    streaming: bool


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Logprobs:
    """Log-probabilities of some tokens, and of the likeliest in their places."""

    chosen: HostArray
    top_ids: HostArray
    top: HostArray


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TokenEvent:
    """What one dispatch brought one request.

    Attributes:
        end: Why it is finished, or with what it failed; None while it goes on.
    """

    request_id: int
    token_ids: tuple[int, ...] = ()
    logprobs: Logprobs | None = None
    end: FinishReason | JaxServerError | None = None
    is_admitted: bool = False
