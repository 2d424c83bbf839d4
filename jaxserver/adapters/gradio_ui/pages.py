"""Mounts the chat and the instruct page on a FastAPI application.

Importing this module imports Gradio, which takes seconds; nothing else does.
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import fastapi
import gradio as gr
from fastapi.middleware import Middleware
from fastapi.responses import RedirectResponse

from jaxserver.adapters.gradio_ui import chat_page, instruct_page, look
from jaxserver.adapters.gradio_ui.by_handler import chat_by, instruct_by, takes_sampling
from jaxserver.adapters.gradio_ui.by_ports import PortAnswers
from jaxserver.adapters.gradio_ui.headers import StaysHome
from jaxserver.adapters.gradio_ui.heartbeat import ShortHeartbeats
from jaxserver.adapters.gradio_ui.page import StartsQueue, open_queue
from jaxserver.ports.config import ServerConfig
from jaxserver.ports.generator import Generator
from jaxserver.ports.handlers import Handlers
from jaxserver.ports.prompt import PromptFormatter
from jaxserver.ports.status import ServerStatus


def mount_pages(  # noqa: PLR0913  # what both pages are made of
    app: fastapi.FastAPI,
    generator: Generator,
    formatter: PromptFormatter,
    *,
    config: ServerConfig,
    instruct_formatter: PromptFormatter | None = None,
    handlers: Handlers | None = None,
    status: ServerStatus | None = None,
) -> fastapi.FastAPI:
    """Adds `/gradio_chat` and `/gradio_instruct`, and leads `/` to the first.

    The instruct page writes its prompts by `instruct_formatter`, where one is given.
    It may be called while the application already serves. With a `status`, the pages
    say what an unready server is doing.
    """
    own = handlers or Handlers()
    ports = PortAnswers(generator, formatter, config)
    instructed = PortAnswers(generator, instruct_formatter or formatter, config)
    limit = config.max_new_tokens
    chat, instruct = own.process_gradio_chat, own.process_gradio_instruct

    async def mount() -> None:
        with_chat = chat_page.chat_page(
            chat_by(chat, limit) if chat else ports.chat,
            config,
            status,
            has_sampling=chat is None or takes_sampling(chat),
        )
        with_instruct = instruct_page.instruct_page(
            instruct_by(instruct, limit) if instruct else instructed.instruct,
            config,
            status,
            has_sampling=instruct is None or takes_sampling(instruct),
        )
        _mount(app, chat_page.PATH, with_chat, config)
        _mount(app, instruct_page.PATH, with_instruct, config)

    # Where no event loop runs, Gradio makes one, sets it as the thread's and leaves it.
    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, mount()).result()
    app.add_api_route("/", _to_chat, include_in_schema=False)
    return app


def _mount(
    app: fastapi.FastAPI, path: str, page: gr.Blocks, config: ServerConfig
) -> None:
    open_queue(page, config)
    gr.mount_gradio_app(
        app,
        page,
        f"/{path}",
        footer_links=[],
        app_kwargs={
            "middleware": [
                Middleware(StaysHome),
                Middleware(ShortHeartbeats),
                Middleware(StartsQueue, page=page),
            ]
        },
        max_file_size=0,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        theme=look.THEME,
        css=look.CSS,
    )


async def _to_chat() -> RedirectResponse:
    """Relative, so that it holds below any path and host."""
    return RedirectResponse(f"{chat_page.PATH}/")
