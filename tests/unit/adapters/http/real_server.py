"""A real server on the loopback, and clients that leave it."""

import contextlib
import json
import socket
from collections.abc import Iterator

from fastapi import FastAPI

from jaxserver.adapters.http.serve import HttpServer

PATIENCE_SECONDS = 20.0


@contextlib.contextmanager
def serving(app: FastAPI) -> Iterator[HttpServer]:
    server = HttpServer(app, "127.0.0.1", 0)
    server.start()
    try:
        yield server
    finally:
        server.stop(1)


def send(
    server: HttpServer, path: str, body: object, room_bytes: int | None = None
) -> socket.socket:
    """Sends a request, and leaves the reading of its answer to the caller.

    What is not read yet may fill no more than `room_bytes` on the client's side.
    """
    client = socket.socket()
    client.settimeout(PATIENCE_SECONDS)
    if room_bytes is not None:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room_bytes)
    client.connect(("127.0.0.1", server.port))
    content = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(content)}\r\n\r\n"
    )
    client.sendall(head.encode() + content)
    return client
