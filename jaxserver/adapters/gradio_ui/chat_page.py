"""The page of a conversation. All of its state is in the browser."""

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import gradio as gr

from jaxserver.adapters.gradio_ui import look, turns
from jaxserver.adapters.gradio_ui.endpoints import chat_endpoint
from jaxserver.adapters.gradio_ui.errors import errors_on_the_page
from jaxserver.adapters.gradio_ui.events import interrupt, quiet
from jaxserver.adapters.gradio_ui.page import Page
from jaxserver.adapters.gradio_ui.panel import Panel
from jaxserver.adapters.gradio_ui.readiness import show_readiness
from jaxserver.adapters.gradio_ui.settings import checked_text
from jaxserver.adapters.gradio_ui.updates import Chat, Update, watched
from jaxserver.ports.config import ServerConfig
from jaxserver.ports.status import ServerStatus

PATH = "gradio_chat"


def chat_page(
    chat: Chat, config: ServerConfig, status: ServerStatus | None, *, has_sampling: bool
) -> gr.Blocks:
    """Lays the page out and wires it."""
    with Page(title="jaxserver chat", analytics_enabled=False) as page:
        look.header(config.model, PATH)
        show_readiness(page, status)
        with gr.Row():
            with gr.Column(scale=3, min_width=320):
                chatbot = _chatbot()
                box = _box()
                with gr.Row(elem_id="under"):
                    note = look.note()
                    retry = look.small_button("Retry")
                    clear = look.small_button("Clear")
            with gr.Column(scale=1, min_width=260, elem_id="panel"):
                panel = Panel(config, with_sampling=has_sampling)

        inputs, outputs = [box, chatbot, *panel.components], [box, chatbot, note]
        asked = {"preprocess": False, **quiet(note)}
        send = _sender(chat, panel)
        sent = box.submit(send, inputs, outputs, **asked)
        back = interrupt([retry.click], [sent], _step_back, [chatbot], outputs)
        again = back.then(send, inputs, outputs, **asked)
        running = [sent, again]
        box.submit(None, cancels=again)
        interrupt([box.stop], running, _stop, [note], [box, note])
        interrupt([clear.click, chatbot.clear], running, _clear, [], outputs)
        gr.api(chat_endpoint(chat), api_name="chat")
    return page


def _chatbot() -> gr.Chatbot:
    return gr.Chatbot(
        show_label=False,
        container=False,
        height=None,
        buttons=["copy"],
        placeholder="Say something to begin.",
        allow_tags=False,
        elem_id="chatbot",
    )


def _box() -> gr.Textbox:
    return gr.Textbox(
        show_label=False,
        container=False,
        placeholder="Message",
        lines=1,
        max_lines=10,
        autofocus=True,
        submit_btn=True,
        elem_id="prompt",
    )


def _sender(chat: Chat, panel: Panel) -> Any:
    async def send(
        prompt: Any, messages: Any, *values: Any
    ) -> AsyncIterator[tuple[Any, Any, str]]:
        """Takes the prompt out of the box, and puts it back if no answer came."""
        with errors_on_the_page():
            history = turns.from_gradio(messages)
            settings = panel.settings(values)
            if not checked_text("prompt", prompt):
                return
            last = Update(shown=[*history, [prompt, ""]], note=look.WAITING)
            yield _box_at_work(), turns.to_gradio(last.shown), last.note
            try:
                updates = watched(chat(prompt, history, settings), last)
                async with contextlib.aclosing(updates):
                    async for update in updates:
                        box = gr.skip() if update.box == last.box else update.box
                        yield box, turns.to_gradio(update.shown), update.note
                        last = update
            except Exception:
                if turns.is_answered(last.shown):
                    yield _box_at_rest(), turns.to_gradio(last.shown), last.note
                else:
                    yield _box_at_rest(value=prompt), turns.to_gradio(history), ""
                raise
            yield _box_at_rest(), turns.to_gradio(last.shown), last.note

    return send


def _step_back(messages: Any) -> tuple[Any, Any, str]:
    """Takes the last turn back: its prompt returns to the box."""
    with errors_on_the_page():
        history, prompt = turns.without_last(messages)
        return _box_at_rest(value=prompt), turns.to_gradio(history), ""


def _stop(note: str) -> tuple[Any, str]:
    return _box_at_rest(), look.stopped(note)


def _clear() -> tuple[Any, list[Any], str]:
    return _box_at_rest(value=""), [], ""


def _box_at_work() -> Any:
    return gr.Textbox(value="", submit_btn=False, stop_btn=True)


def _box_at_rest(**changes: str) -> Any:
    return gr.Textbox(submit_btn=True, stop_btn=False, **changes)
