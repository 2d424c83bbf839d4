"""Runs an application in uvicorn, beside other work."""

import contextlib
import errno
import math
import os
import socket
import threading

import uvicorn
from starlette.types import ASGIApp

from jaxserver.ports.errors import InvalidConfig

FLUSH_SECONDS = 6.0
"""What clients get to read answers that are there, and pages to end their events."""
_BACKLOG = 2048
_POLL_SECONDS = 0.005


class HttpServer:
    """One application on one address; it serves once, and is then used up."""

    def __init__(self, app: ASGIApp, host: str, port: int) -> None:
        """Port 0 takes a free one."""
        self._host = host
        self._port = port
        self._thread: threading.Thread | None = None
        config = uvicorn.Config(
            app,
            # Its own would shut down the handlers of the program around us.
            log_config=None,
            log_level="warning",
            access_log=False,
        )
        self._server = uvicorn.Server(config)

    @property
    def port(self) -> int:
        """The real port once it listens, the one asked for before."""
        return self._port

    def start(self) -> None:
        """Serves in a thread of its own, and returns when it listens.

        Raises:
            InvalidConfig: The address cannot be listened on.
            RuntimeError: The application failed at its start; the log says why.
        """
        args = (self._listen(),)
        thread = threading.Thread(
            target=self._serve, args=args, name="jaxserver-http", daemon=True
        )
        thread.start()
        self._thread = thread
        while thread.is_alive() and not self._server.started:
            thread.join(_POLL_SECONDS)
        self._check_started()

    def stop(self, drain_seconds: float = FLUSH_SECONDS) -> None:
        """Takes no more requests and lets answers end; may be repeated.

        Returns when the thread of `start` has ended.
        """
        self._server.config.timeout_graceful_shutdown = math.ceil(drain_seconds)
        self._server.should_exit = True
        if self._thread is not None:
            self._thread.join()

    def _listen(self) -> socket.socket:
        listening = listen(self._host, self._port)
        self._port = listening.getsockname()[1]
        return listening

    def _serve(self, listening: socket.socket) -> None:
        # Where the application fails at its start, uvicorn ends the program.
        with listening, contextlib.suppress(SystemExit):
            self._server.run(sockets=[listening])

    def _check_started(self) -> None:
        if not self._server.started:
            raise RuntimeError("the HTTP application failed at its start")


def listen(host: str, port: int) -> socket.socket:
    """A socket that takes connections.

    Raises:
        InvalidConfig: The port is taken or not ours to take, or the host is not here.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        if error.errno in {errno.EADDRINUSE, errno.EACCES}:
            got = f"{port} ({os.strerror(error.errno)})"
            allowed = f"a free port of {host}, or 0 for any"
            raise InvalidConfig("port", got, allowed) from error
        raise InvalidConfig("host", repr(host), "an address of this machine") from error
