"""Scripted servers to measure."""

import asyncio
import contextlib
import itertools
from collections.abc import Iterator

import httpx

from benchmarks.load import Clock, Run, Workload, drive
from jaxserver.adapters.http.app import create_app
from jaxserver.adapters.http.serve import HttpServer
from tests.fakes import ByteFormatter, FixedStatus, ScriptedGenerator


def ticking() -> Clock:
    """A second goes by between one look and the next."""
    return map(float, itertools.count()).__next__


def drive_in_process(generator: ScriptedGenerator, workload: Workload) -> Run:
    """A run without a network, by a ticking clock."""
    app = create_app(generator, ByteFormatter(), status=FixedStatus())

    async def run() -> Run:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as http:
            return await drive(http, workload, ticking())

    return asyncio.run(run())


@contextlib.contextmanager
def serving(generator: ScriptedGenerator) -> Iterator[str]:
    """The address of a real server on the loopback."""
    app = create_app(generator, ByteFormatter(), status=FixedStatus())
    server = HttpServer(app, "127.0.0.1", 0)
    server.start()
    try:
        yield f"http://127.0.0.1:{server.port}"
    finally:
        server.stop()
