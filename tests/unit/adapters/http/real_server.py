"""A real server on the loopback, and clients that leave it."""

import contextlib
import json
import socket
import time
from collections.abc import Callable, Iterator

from fastapi import FastAPI

from jaxserver.adapters.http.serve import HttpServer

PATIENCE_SECONDS = 10.0


@contextlib.contextmanager
def serving(app: FastAPI) -> Iterator[HttpServer]:
    server = HttpServer(app, "127.0.0.1", 0, drain_seconds=1)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def send(server: HttpServer, path: str, body: object) -> socket.socket:
    """Sends a request, and leaves the reading of its answer to the caller."""
    client = socket.create_connection(("127.0.0.1", server.port), PATIENCE_SECONDS)
    content = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(content)}\r\n\r\n"
    )
    client.sendall(head.encode() + content)
    return client


def eventually(holds: Callable[[], bool]) -> bool:
    """Waits until something holds, and says whether it ever did."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True
