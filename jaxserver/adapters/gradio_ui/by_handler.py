"""Answers from a user's own generator functions, each run in a worker thread."""

import asyncio
import contextvars
import inspect
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from jaxserver.adapters.gradio_ui.settings import Settings
from jaxserver.adapters.gradio_ui.updates import (
    Chat,
    Instruct,
    Shown,
    Update,
    Updates,
)
from jaxserver.ports.errors import InvalidRequest
from jaxserver.ports.handlers import CANCEL, CancelToken, History, PageUpdates


def takes_sampling(handler: Callable[..., PageUpdates]) -> bool:
    """The handler has `**sampling`, or whatever it calls it."""
    parameters = inspect.signature(handler).parameters.values()
    return any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)


def chat_by(handler: Callable[..., PageUpdates], max_new_tokens: int) -> Chat:
    """The chat page's answers from a `process_gradio_chat`."""

    def chat(prompt: str, history: History, settings: Settings) -> Updates[History]:
        sampling = _sampling(handler, settings)
        limit = settings.max_new_tokens or max_new_tokens

        def updates() -> Iterator[Update[History]]:
            pairs = [list(turn) for turn in history]
            given = handler(
                prompt, pairs, limit, settings.system, settings.greedy, **sampling
            )
            for box, shown in _with_returned(given):
                # Handlers go on writing to the list that they yielded.
                yield Update(box=box, shown=[list(turn) for turn in shown])

        return _in_worker(updates())

    return chat


def instruct_by(handler: Callable[..., PageUpdates], max_new_tokens: int) -> Instruct:
    """The instruct page's answers from a `process_gradio_instruct`."""

    def instruct(prompt: str, settings: Settings) -> Updates[str]:
        sampling = _sampling(handler, settings)
        limit = settings.max_new_tokens or max_new_tokens

        def updates() -> Iterator[Update[str]]:
            given = handler(prompt, settings.system, limit, settings.greedy, **sampling)
            for box, shown in _with_returned(given):
                yield Update(box=box, shown=str(shown))

        return _in_worker(updates())

    return instruct


def _sampling(
    handler: Callable[..., PageUpdates], settings: Settings
) -> dict[str, float | int | None]:
    sampling = settings.sampling_fields()
    if takes_sampling(handler):
        return sampling
    for field, value in sampling.items():
        if value is not None:
            method = getattr(handler, "__name__", "the handler")
            allowed = f"nothing: this server's {method} takes no **sampling"
            raise InvalidRequest(field, str(value), allowed)
    return {}


def _with_returned(updates: Any) -> Iterator[tuple[str, Any]]:
    """The updates, and after them what the handler returns."""
    if isinstance(updates, tuple):  # a function that only returns
        yield updates
        return
    returned = yield from updates
    if returned is not None:
        yield returned


async def _in_worker(updates: Iterator[Update[Shown]]) -> Updates[Shown]:
    """Runs one generator from its first step to its close in one thread of its own.

    A step cannot be interrupted, so the close waits behind it, and whoever reads does
    not wait for either.
    """
    cancel, context = CancelToken(), contextvars.copy_context()
    context.run(CANCEL.set, cancel)
    worker = ThreadPoolExecutor(1, thread_name_prefix="jaxserver-page")
    loop = asyncio.get_running_loop()

    def step() -> Update[Shown] | None:
        return context.run(next, updates, None)

    try:
        while update := await loop.run_in_executor(worker, step):
            yield update
    finally:
        cancel.set()
        worker.submit(context.run, updates.close)  # type: ignore[attr-defined]  # a generator
        worker.shutdown(wait=False)
