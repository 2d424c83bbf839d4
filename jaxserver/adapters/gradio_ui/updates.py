"""What a page shows while an answer comes, whoever makes it."""

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncGenerator, Callable
from typing import Generic, TypeAlias, TypeVar

from jaxserver.adapters.gradio_ui.settings import Settings
from jaxserver.ports.handlers import History

Shown = TypeVar("Shown")
LOOK_SECONDS = 0.5


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Update(Generic[Shown]):
    """The state of one answer.

    Attributes:
        box: What stands in the input box.
        shown: The conversation with its newest turn, or the answer so far.
        note: How it goes: tokens, speed, what was left out.
    """

    box: str = ""
    shown: Shown
    note: str = ""


Updates: TypeAlias = AsyncGenerator[Update[Shown], None]
Chat: TypeAlias = Callable[[str, History, Settings], Updates[History]]
Instruct: TypeAlias = Callable[[str, Settings], Updates[str]]


async def watched(
    updates: Updates[Shown], first: Update[Shown], every_seconds: float = LOOK_SECONDS
) -> Updates[Shown]:
    """Gives `first` at once, and the last update again while the next is awaited.

    Gradio looks whether a page is still there between two updates only. Without the
    repetitions, a request that waits in the queue would outlive its tab.
    """
    last: Update[Shown] | None = first
    step: asyncio.Future[Update[Shown] | None] | None = None
    async with contextlib.aclosing(updates):
        try:
            while last is not None:
                yield last
                if step is None:
                    step = asyncio.ensure_future(_next(updates))
                if (await asyncio.wait({step}, timeout=every_seconds))[0]:
                    last, step = step.result(), None
        finally:
            if step is not None:
                step.cancel()
                await asyncio.wait({step})


async def _next(updates: Updates[Shown]) -> Update[Shown] | None:
    return await anext(updates, None)
