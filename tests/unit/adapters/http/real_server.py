"""A real server on the loopback, and clients that leave it."""

import contextlib
import json
import socket
from collections.abc import Iterator

from fastapi import FastAPI

from jaxserver.adapters.http.serve import HttpServer

PATIENCE_SECONDS = 20.0


@contextlib.contextmanager
def serving(app: FastAPI, drain_seconds: int = 1) -> Iterator[HttpServer]:
    server = HttpServer(app, "127.0.0.1", 0, drain_seconds=drain_seconds)
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
