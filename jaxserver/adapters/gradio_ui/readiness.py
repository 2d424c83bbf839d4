"""A line on each page that says what a server does that cannot answer yet."""

from typing import Any

import gradio as gr

from jaxserver.ports.status import ServerState, ServerStatus

LOOK_SECONDS = 2.0
_WORDS = {
    ServerState.LOADING: "The model is being loaded.",
    ServerState.COMPILING: "The model is being compiled.",
    ServerState.DRAINING: "The server is shutting down.",
    ServerState.FAILED: "The engine has failed; the server's log says more.",
}


def show_readiness(page: gr.Blocks, status: ServerStatus | None) -> None:
    """Shows the line, and looks again until the server is ready."""
    if status is None:
        return
    line = gr.Markdown(visible=False, elem_id="state")
    timer = gr.Timer(LOOK_SECONDS)

    async def look() -> tuple[Any, Any]:
        state = status.snapshot().state
        words = _WORDS.get(state, "")
        return (
            gr.Markdown(value=words, visible=bool(words)),
            gr.Timer(active=bool(words)),
        )

    for event in (page.load, timer.tick):
        event(
            look, None, [line, timer], show_progress="hidden", api_visibility="private"
        )
