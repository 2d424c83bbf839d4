"""Gradio's `Blocks`, made fit for many pages on a server that stays up."""

import sys
import weakref
from typing import Any

import gradio as gr
from gradio.utils import LRUCache

from jaxserver.adapters.gradio_ui.headers import App, Receive, Scope, Send
from jaxserver.ports.config import ServerConfig

MOST_SLOTS = 256


class Page(gr.Blocks):  # type: ignore[misc]  # Gradio is not typed
    """A page that forgets an answer once it has ended, in whatever way.

    Gradio sends differences to what it sent last, which it finds by the `id` of the
    answer's generator. After a stop or an error it keeps the entry, and the next
    generator may well get the same `id`: the browser would then be sent the difference
    to an answer that it does not have.
    """

    async def call_function(
        self, block_fn: Any, processed_input: Any, iterator: Any = None, *rest: Any
    ) -> dict[str, Any]:
        result: dict[str, Any] = await super().call_function(
            block_fn, processed_input, iterator, *rest
        )
        started = result["iterator"]
        if iterator is None and started is not None:
            weakref.finalize(started, self._forget, id(started)).atexit = False
        return result

    def _forget(self, run: int) -> None:
        for session, runs in list(self.pending_diff_streams.items()):
            runs.pop(run, None)
            if not runs:
                del self.pending_diff_streams[session]


class StartsQueue:
    """ASGI middleware that starts a page's queue where no lifespan event did.

    An application that already serves, or that is mounted on another, gets none.
    """

    def __init__(self, app: App, page: gr.Blocks) -> None:
        self._app = app
        self._page = page

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not self._page.is_running:
            self._page.run_startup_events()
        await self._app(scope, receive, send)


def open_queue(page: gr.Blocks, config: ServerConfig) -> None:
    """Lets as many requests run at once as the engine takes, and keeps none of them.

    Who has to wait is for the engine to say. Gradio remembers every event, for
    statistics that nobody reads here, and looks for new ones a thousand times a second.
    """
    room = (config.slots or MOST_SLOTS) + config.max_queue
    page.max_threads = room + 16  # clearing and looking go through it, too
    page.state_session_capacity = 2 * room  # all state worth keeping is in the browser
    page.queue(default_concurrency_limit=None, api_open=False)
    queue: Any = page._queue
    queue.event_analytics = LRUCache(2 * page.max_threads)
    queue.event_ids_to_events = LRUCache(2 * page.max_threads)
    queue.ANAYLTICS_CACHE_FREQUENCY = sys.maxsize
    queue.sleep_when_free = 0.01
