"""The `serve` command: listen, load, answer, and leave when told to."""

import gc
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable
from types import FrameType

from jaxserver.ports.config import ServerConfig
from jaxserver.ports.errors import EngineFailed
from jaxserver.ports.progress import Progress
from jaxserver.processes import join
from jaxserver.server import JAXServer
from jaxserver.wiring import compile_model, follow, load_model, with_processors

LOGGER = logging.getLogger("jaxserver")
CHECK_SECONDS = 0.25
"""How often the engine is looked after."""
FAREWELL_SECONDS = 1.0
"""How long a server whose engine died says so before it ends."""


def serve(
    config: ServerConfig, progress: Progress, on_ready: Callable[[str], None]
) -> None:
    """Serves until SIGINT or SIGTERM; what runs then may finish.

    It listens before it loads, so that whoever asks hears that it is loading. A signal
    before it is ready, or a second one, ends the process at once. An engine that died
    or hangs does so with a message and exit code 1: its thread, or JAX that waits for a
    process that is lost, would not let this one end otherwise.
    """
    _log_to_stderr()
    join(config)
    try:
        if config.process_id > 0:
            _follow(config, progress)
        else:
            _serve(config, progress, on_ready)
    except EngineFailed as error:
        LOGGER.error("error: %s", error)
        os._exit(1)


def _serve(
    config: ServerConfig, progress: Progress, on_ready: Callable[[str], None]
) -> None:
    server = JAXServer(config)
    told_to_stop = _stop_on_signals(server)
    server.fire(pages_later=True)
    try:
        server.open(progress)
        _settle()
        on_ready(server.url)
        while not told_to_stop.wait(CHECK_SECONDS):
            if not server.is_alive():
                told_to_stop.wait(FAREWELL_SECONDS)
                raise EngineFailed("the engine died or hangs; the server ends")
    finally:
        has_ended = server.end()
    if not has_ended:
        raise EngineFailed("a step does not end; the server ends without it")


def _follow(config: ServerConfig, progress: Progress) -> None:
    """Serves the same model as process 0, and nobody but it."""
    model = with_processors(load_model(config, progress), {})
    compiled = compile_model(model, config, progress)
    _settle()
    follow(model, compiled)


def _settle() -> None:
    """What a start has made is not looked through again, each time for what may go."""
    gc.collect()
    gc.freeze()
    gc.enable()


def _stop_on_signals(server: JAXServer) -> threading.Event:
    told_to_stop = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        if told_to_stop.is_set() or not server.is_ready():
            os._exit(128 + number)
        told_to_stop.set()

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    return told_to_stop


def _log_to_stderr() -> None:
    """Lets our own lines be seen, as they are, and nothing more of other libraries."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("jaxserver")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    # The pages' library uses names that its own libraries have renamed.
    warnings.filterwarnings("ignore", module="gradio")
