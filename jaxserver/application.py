"""The HTTP application around one model: the routes and, where wanted, the pages."""

import functools
from concurrent.futures import Future
from typing import NamedTuple, Protocol

import fastapi
from starlette.middleware import Middleware

from jaxserver.adapters.http.app import create_app
from jaxserver.adapters.http.late import WaitsFor
from jaxserver.adapters.tokenizers.late import LateTokenizer
from jaxserver.hosting import Host
from jaxserver.ports.generator import Generator
from jaxserver.ports.handlers import Handlers
from jaxserver.ports.prompt import PromptFormatter
from jaxserver.ports.status import ServerStatus
from jaxserver.profiling import JaxProfiler

PAGES = frozenset({"/", "/gradio_chat", "/gradio_instruct"})


class Served(Generator, ServerStatus, Protocol):
    """What answers, and knows how it is."""


class Written(NamedTuple):
    """What writes prompts down, and what answers in the routes' place."""

    chat: PromptFormatter
    instruct: PromptFormatter
    handlers: Handlers


def application(
    served: Served, host: Host, written: Written, *, pages: bool, later: bool = False
) -> fastapi.FastAPI:
    """To serve as it is, or to mount in another one.

    Args:
        served: What answers.
        host: Brings the model.
        written: What writes prompts down.
        pages: With the pages.
        later: They come when somebody asks for one, who waits for them: it takes as
            long, and as much memory, as the routes do.
    """
    config, slots = host.config, host.config.slots or 0
    app = create_app(
        served,
        written.chat,
        instruct_formatter=written.instruct,
        tokenizer=LateTokenizer(lambda: host.loaded().tokenizer),
        status=served,
        metrics=host.metrics,
        profiler=JaxProfiler() if config.profile else None,
        handlers=written.handlers,
        api_key=config.api_key,
        truncate_prompts=config.use_prefix_tokenizer,
        handler_threads=max(32, slots) + config.max_queue,
    )
    if pages and later:

        @functools.cache
        def mounted() -> Future[None]:
            return host.begins(lambda: _mount_pages(app, served, host, written))

        # Behind all others: who may not see a page does not bring it either.
        late = Middleware(WaitsFor, paths=PAGES, mounted=mounted)
        app.user_middleware.append(late)
    elif pages:
        _mount_pages(app, served, host, written)
    return app


def _mount_pages(
    app: fastapi.FastAPI, served: Served, host: Host, written: Written
) -> None:
    from jaxserver.adapters.gradio_ui.pages import mount_pages  # noqa: PLC0415  # slow

    mount_pages(
        app,
        served,
        written.chat,
        instruct_formatter=written.instruct,
        config=host.config,
        handlers=written.handlers,
        status=served,
    )
