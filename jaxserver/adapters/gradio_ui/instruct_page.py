"""The page of a single instruction and its answer."""

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import gradio as gr

from jaxserver.adapters.gradio_ui import look
from jaxserver.adapters.gradio_ui.endpoints import instruct_endpoint
from jaxserver.adapters.gradio_ui.errors import errors_on_the_page
from jaxserver.adapters.gradio_ui.events import interrupt, quiet
from jaxserver.adapters.gradio_ui.page import Page
from jaxserver.adapters.gradio_ui.panel import Panel
from jaxserver.adapters.gradio_ui.readiness import show_readiness
from jaxserver.adapters.gradio_ui.settings import checked_text
from jaxserver.adapters.gradio_ui.updates import Instruct, Update, watched
from jaxserver.ports.config import ServerConfig
from jaxserver.ports.status import ServerStatus

PATH = "gradio_instruct"


def instruct_page(
    instruct: Instruct,
    config: ServerConfig,
    status: ServerStatus | None,
    *,
    has_sampling: bool,
) -> gr.Blocks:
    """Lays the page out and wires it."""
    with Page(title="jaxserver instruct", analytics_enabled=False) as page:
        look.header(config.model, PATH)
        show_readiness(page, status)
        with gr.Row():
            with gr.Column(scale=3, min_width=320):
                box = gr.Textbox(
                    label="Instruction",
                    placeholder="What should the model do?",
                    lines=4,
                    max_lines=12,
                    autofocus=True,
                    elem_id="prompt",
                )
                with gr.Row(elem_id="under"):
                    note = look.note()
                    run = look.small_button("Run", variant="primary")
                    stop = look.small_button("Stop", interactive=False)
                    clear = look.small_button("Clear")
                answer = gr.Textbox(
                    label="Answer",
                    lines=10,
                    max_lines=30,
                    interactive=False,
                    buttons=["copy"],
                    elem_id="answer",
                )
            with gr.Column(scale=1, min_width=260, elem_id="panel"):
                panel = Panel(config, with_sampling=has_sampling)

        outputs = [box, answer, stop, note]
        ran = gr.on(
            [run.click, box.submit],
            _runner(instruct, panel),
            [box, *panel.components],
            outputs,
            preprocess=False,
            **quiet(note),
        )
        interrupt([stop.click], [ran], _stop, [note], [stop, note])
        interrupt([clear.click], [ran], _clear, [], outputs)
        gr.api(instruct_endpoint(instruct), api_name="instruct")
    return page


def _runner(instruct: Instruct, panel: Panel) -> Any:
    async def run(prompt: Any, *values: Any) -> AsyncIterator[tuple[Any, ...]]:
        with errors_on_the_page():
            settings = panel.settings(values)
            last = Update(
                box=checked_text("prompt", prompt), shown="", note=look.WAITING
            )
            yield gr.skip(), "", gr.Button(interactive=True), last.note
            try:
                updates = watched(instruct(prompt, settings), last)
                async with contextlib.aclosing(updates):
                    async for update in updates:
                        box = gr.skip() if update.box == last.box else update.box
                        yield box, update.shown, gr.skip(), update.note
                        last = update
            except Exception:
                yield _at_rest(last)
                raise
            yield _at_rest(last)

    return run


def _at_rest(last: Update[str]) -> tuple[Any, ...]:
    note = "" if last.note == look.WAITING else last.note
    return gr.skip(), last.shown, gr.Button(interactive=False), note


def _stop(note: str) -> tuple[Any, str]:
    return gr.Button(interactive=False), look.stopped(note)


def _clear() -> tuple[Any, ...]:
    return "", "", gr.Button(interactive=False), ""
