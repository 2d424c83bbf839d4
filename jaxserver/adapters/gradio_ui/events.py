"""How the pages listen to what is pressed."""

from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr


def quiet(note: gr.Markdown) -> dict[str, Any]:
    """No veil over what is shown, and no name for clients."""
    return {
        "show_progress": "hidden",
        "show_progress_on": note,
        "api_visibility": "private",
    }


def interrupt(
    triggers: Sequence[Any],
    cancels: list[Any],
    tidy: Callable[..., Any],
    inputs: Sequence[Any],
    outputs: Sequence[Any],
) -> Any:
    """Cancels what runs, then tidies the page up; `outputs` end with the note.

    The browser drops the stream of events when it cancels. What is tidied therefore
    must not come through the queue, whose results travel in that stream, and has to
    come second, or a last piece of the answer would be written over it.
    """
    gr.on(triggers, None, cancels=cancels)
    return gr.on(
        triggers,
        tidy,
        inputs,
        outputs,
        queue=False,
        preprocess=False,
        **quiet(outputs[-1]),
    )
