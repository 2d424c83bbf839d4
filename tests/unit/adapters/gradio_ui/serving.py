"""Serves the pages on a free port of the loopback, in a thread."""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import fastapi
import uvicorn

from jaxserver.adapters.gradio_ui.pages import mount_pages
from jaxserver.ports.config import ServerConfig
from jaxserver.ports.generator import Generator
from tests.fakes import ByteFormatter
from tests.waiting import eventually


@contextlib.contextmanager
def pages(
    generator: Generator, config: ServerConfig | None = None, **more: Any
) -> Iterator[str]:
    """The address under which the pages answer."""
    app = fastapi.FastAPI()
    formatter = more.pop("formatter", ByteFormatter())
    mount_pages(app, generator, formatter, config=config or ServerConfig(), **more)
    with served(app) as address:
        yield address


@contextlib.contextmanager
def served(app: Any) -> Iterator[str]:
    """Ends without waiting for clients, whose heartbeats take seconds to end."""
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            host="127.0.0.1",
            port=0,
            log_level="critical",
            timeout_graceful_shutdown=0,
        )
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        assert eventually(lambda: server.started)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
