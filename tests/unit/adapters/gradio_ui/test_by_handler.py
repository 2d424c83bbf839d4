"""A user's own generators answer in the ports' place."""

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from jaxserver.adapters.gradio_ui.by_handler import chat_by, instruct_by, takes_sampling
from jaxserver.adapters.gradio_ui.settings import Settings
from jaxserver.adapters.gradio_ui.updates import Shown, Update, Updates
from jaxserver.ports.errors import InvalidRequest
from jaxserver.ports.handlers import CANCEL, History


def every(updates: Updates[Shown]) -> list[Update[Shown]]:
    async def read() -> list[Update[Shown]]:
        return [update async for update in updates]

    return asyncio.run(read())


def test_a_handler_may_write_on_in_the_history_it_yielded() -> None:
    def handler(
        prompt: str, history: History, max_new_tokens: int, system: str, greedy: bool
    ) -> Any:
        assert (max_new_tokens, system, greedy) == (64, "s", True)
        history.append([prompt, ""])
        for text in ("He", "Hello"):
            history[-1][-1] = text
            yield "", history
        return "", history

    earlier = [["a", "b"]]
    updates = every(
        chat_by(handler, 64)("hi", earlier, Settings(system="s", greedy=True))
    )
    answers = [update.shown[-1][1] for update in updates]
    assert answers == ["He", "Hello", "Hello"]
    assert updates[0].shown == [["a", "b"], ["hi", "He"]]
    assert earlier == [["a", "b"]]


def test_what_a_handler_returns_is_its_last_update() -> None:
    def handler(*_: object) -> Any:
        return "", "whole"
        yield

    (update,) = every(instruct_by(handler, 64)("hi", Settings()))
    assert (update.box, update.shown) == ("", "whole")


def test_a_handler_that_only_returns_is_no_generator_and_works() -> None:
    def handler(prompt: str, *_: object) -> Any:
        return "next", f"{prompt}!"

    (update,) = every(instruct_by(handler, 64)("hi", Settings()))
    assert (update.box, update.shown) == ("next", "hi!")


def test_only_a_handler_with_sampling_gets_it() -> None:
    def with_sampling(*_: object, **sampling: object) -> Iterator[tuple[str, object]]:
        yield "", sampling

    def without(*_: object) -> Iterator[tuple[str, str]]:
        yield "", "fine"

    assert takes_sampling(with_sampling)
    assert not takes_sampling(without)
    settings = Settings(temperature=0.5, top_k=3)
    (update,) = every(instruct_by(with_sampling, 64)("hi", settings))
    assert update.shown == str({"temperature": 0.5, "top_p": None, "top_k": 3})
    with pytest.raises(InvalidRequest, match=r"^temperature: .*without takes no \*\*"):
        instruct_by(without, 64)("hi", settings)
    assert every(instruct_by(without, 64)("hi", Settings()))[0].shown == "fine"


def test_a_handler_runs_in_one_worker_thread_with_a_cancel_token() -> None:
    threads: list[threading.Thread] = []

    def handler(*_: object) -> Iterator[tuple[str, str]]:
        for _step in range(3):
            assert CANCEL.get() is not None
            threads.append(threading.current_thread())
            yield "", ""

    every(instruct_by(handler, 64)("hi", Settings()))
    assert len(set(threads)) == 1
    assert threads[0] is not threading.current_thread()
    assert CANCEL.get() is None


def test_leaving_sets_the_token_and_closes_the_handler() -> None:
    waits, seen_token, closed = (threading.Event() for _ in range(3))

    def handler(*_: object) -> Iterator[tuple[str, str]]:
        token = CANCEL.get()
        assert token is not None
        try:
            yield "", "a"
            waits.set()
            seen_token.set() if token.wait(20) else None
            yield "", "b"
        finally:
            closed.set()

    async def leave() -> None:
        updates = instruct_by(handler, 64)("hi", Settings())
        async with contextlib.aclosing(updates):
            await anext(updates)
            step = asyncio.ensure_future(anext(updates))
            assert await asyncio.to_thread(waits.wait, 20)
            step.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await step

    asyncio.run(leave())
    assert seen_token.wait(20)
    assert closed.wait(20)


def test_an_error_of_a_handler_reaches_the_reader() -> None:
    def handler(*_: object) -> Iterator[tuple[str, str]]:
        yield "", "a"
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        every(instruct_by(handler, 64)("hi", Settings()))
