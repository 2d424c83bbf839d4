"""Serves the pages on a free port of the loopback, in a thread."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import fastapi
import uvicorn

from jaxserver.adapters.gradio_ui.pages import mount_pages
from jaxserver.ports.config import ServerConfig
from jaxserver.ports.generator import Generator
from tests.fakes import ByteFormatter


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
        wait_until(lambda: server.started)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def wait_until(happened: Callable[[], object], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)
