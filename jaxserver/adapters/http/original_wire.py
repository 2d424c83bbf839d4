"""The bodies of `/instruct` and `/chat`, and what is answered."""

from typing import Any, Literal

import pydantic

from jaxserver.adapters.http.wire import (
    LogitsProcessors,
    Priority,
    Probability,
    Seconds,
    Seed,
    Stop,
    Temperature,
    TokenCount,
    TopK,
    WireModel,
)
from jaxserver.ports.handlers import ChatRequest, InstructRequest
from jaxserver.ports.types import FinishReason


class _Sampling(WireModel):
    temperature: Temperature | None = None
    greedy: bool | None = False
    max_new_tokens: TokenCount | None = None
    top_p: Probability | None = None
    top_k: TopK | None = None
    seed: Seed | None = None
    stop: Stop | None = None
    logits_processors: LogitsProcessors | None = None
    stream: bool | None = False
    priority: Priority | None = 0
    deadline_seconds: Seconds | None = None
    receipt: bool | None = False

    def fields(self) -> dict[str, Any]:
        """Those of the request itself; whether it wants a receipt is no part of it."""
        return {name: value for name, value in self if name != "receipt"}


class InstructBody(_Sampling):
    """One instruction; null, and an empty system, is the server's default."""

    prompt: str
    system: str | None = None

    def to_request(self) -> InstructRequest:
        return InstructRequest(**self.fields())


class ChatBody(_Sampling):
    """One turn of a conversation; history holds pairs of user and assistant.

    Null, and an empty system, is the server's default.
    """

    prompt: str
    system: str | None = None
    history: list[tuple[str, str]] | None = None

    def to_request(self) -> ChatRequest:
        pairs = None if self.history is None else [list(turn) for turn in self.history]
        return ChatRequest(**{**self.fields(), "history": pairs})


class OriginalAnswer(pydantic.BaseModel):
    """A whole answer.

    Attributes:
        input: The prompt as the model was given it.
        tokens_used: Tokens drawn, the end token included.
        receipt: Where it was asked for, and only there.
    """

    input: str
    response: str
    tokens_used: int
    prompt_tokens: int
    prompt_tokens_dropped: int
    finish_reason: FinishReason
    seed: int | None
    receipt: dict[str, Any] | None = None


class Down(pydantic.BaseModel):
    """The model is not ready."""

    status: Literal["down"]


class Piece(pydantic.BaseModel):
    """An event of a streamed answer: its next piece, and the tokens drawn so far."""

    response: str
    tokens_used: int
