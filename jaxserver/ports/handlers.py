"""The original's two requests, and the functions that may answer in our place."""

import contextvars
import dataclasses
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeAlias

from jaxserver.ports.prompt import Pairs


class CancelToken(threading.Event):
    """Says that an answer is not wanted any more, and tells those who asked to know."""

    def __init__(self) -> None:
        super().__init__()
        self._callbacks: list[Callable[[], None]] = []
        self._adding = threading.Lock()

    def set(self) -> None:
        with self._adding:
            super().set()
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()

    def on_set(self, callback: Callable[[], None]) -> None:
        """Calls back when the token is set, at once where it is set already."""
        with self._adding:
            is_set = self.is_set()
            if not is_set:
                self._callbacks.append(callback)
        if is_set:
            callback()


CANCEL: contextvars.ContextVar[CancelToken | None] = contextvars.ContextVar(
    "jaxserver_cancel", default=None
)
"""Put by an adapter around a handler; work done for it stops once the token is set."""


class Urgency(NamedTuple):
    """What a request says of when it is to be answered; see `GenerationRequest`."""

    priority: int = 0
    deadline_seconds: float | None = None


USUAL = Urgency()
URGENCY: contextvars.ContextVar[Urgency] = contextvars.ContextVar(
    "jaxserver_urgency", default=USUAL
)
"""Put by an adapter around a handler; whatever is generated for it is as urgent."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class InstructRequest:
    """One instruction, as `POST /instruct` takes it; None is the server's default."""

    prompt: str
    system: str | None = None
    temperature: float | None = None
    greedy: bool | None = False
    max_new_tokens: int | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    logits_processors: Mapping[str, Mapping[str, float]] | None = None
    stream: bool | None = False
    priority: int | None = 0
    deadline_seconds: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChatRequest:
    """One turn of a conversation, as `POST /chat` takes it.

    Attributes:
        history: Earlier turns, each a pair of what the user and the assistant said.
    """

    prompt: str
    system: str | None = None
    history: Pairs | None = None
    temperature: float | None = None
    greedy: bool | None = False
    max_new_tokens: int | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    logits_processors: Mapping[str, Mapping[str, float]] | None = None
    stream: bool | None = False
    priority: int | None = 0
    deadline_seconds: float | None = None


def sampling_fields(request: InstructRequest | ChatRequest) -> dict[str, Any]:
    """Those of its fields that are `SamplingParams`, under their names there."""
    stop = [request.stop] if isinstance(request.stop, str) else request.stop or []
    return {
        "greedy": bool(request.greedy),
        "temperature": request.temperature,
        "max_new_tokens": request.max_new_tokens,
        "top_p": request.top_p,
        "top_k": request.top_k,
        "seed": request.seed,
        "stop": tuple(stop),
        "logits_processors": request.logits_processors or {},
    }


Answer: TypeAlias = Mapping[str, object]
History: TypeAlias = list[list[str]]
PageUpdates: TypeAlias = Iterator[tuple[str, object]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Handlers:
    """Functions of the user's own; None leaves the route or page to its adapter.

    `forward_*` run in a worker thread with `CANCEL` set and return the JSON answer.
    `process_gradio_chat(prompt, history, max_new_tokens, system, greedy)` and
    `process_gradio_instruct(prompt, system, max_new_tokens, greedy)` are generators of
    `(text of the input box, history or answer)`; what they return is their last update.
    One that takes `**sampling` also gets `temperature`, `top_p` and `top_k`.
    """

    forward_instruct: Callable[[InstructRequest], Answer] | None = None
    forward_chat: Callable[[ChatRequest], Answer] | None = None
    process_gradio_chat: Callable[..., PageUpdates] | None = None
    process_gradio_instruct: Callable[..., PageUpdates] | None = None
