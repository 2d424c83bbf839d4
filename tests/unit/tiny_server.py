"""A server over tiny parts, in place of a checkpoint."""

import contextlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
from gradio_client import Client

from jaxserver import hosting
from jaxserver import server as server_module
from jaxserver.adapters.engine.compiling import CompiledSteps
from jaxserver.ports.config import ServerConfig
from jaxserver.ports.memory import MemoryPlan
from jaxserver.ports.model import Params
from jaxserver.ports.progress import Progress
from jaxserver.ports.receipt import Digests
from jaxserver.server import JAXServer
from jaxserver.wiring import Model
from tests import engines
from tests.fakes import ByteFormatter, ByteTokenizer

PLAN = MemoryPlan(
    model="tiny",
    num_parameters=1,
    num_devices=1,
    slots=engines.NARROW.slots,
    max_length=engines.MAX_LEN,
    dtype="float32",
    weights_bytes_per_device=10,
    cache_bytes_per_device=20,
)


def tiny_parts(
    config: ServerConfig, progress: Progress, partition_rules: object = ()
) -> Model:
    """What `load_model` returns, without a file."""
    tiny = engines.model()
    weights: Future[Params] = Future()
    weights.set_result(tiny.params)
    digests: Future[Digests] = Future()
    digests.set_result(
        Digests(weights="aa", settings=None, tokenizer="cc", template=None)
    )
    progress("load", 1, 1)
    return Model(
        fns=tiny.fns,
        weights=weights,
        shapes=tiny.params,
        tokenizer=ByteTokenizer(),
        formatter=ByteFormatter(),
        engine=engines.NARROW,
        mesh=tiny.mesh,
        plan=PLAN,
        backend="native",
        digests=digests,
    )


def tiny_steps(model: Model, config: ServerConfig, progress: Progress) -> CompiledSteps:
    """What `compile_model` returns, compiled once a session."""
    return engines.compiled(engines.NARROW)


class Servers:
    """Makes servers, and ends them."""

    def __init__(self) -> None:
        self._made: list[JAXServer] = []

    def make(self, kind: type[JAXServer] = JAXServer, **config: Any) -> JAXServer:
        """One that is not open yet."""
        keys = {
            "max_stream_tokens": engines.NARROW.max_stream_tokens,
            "max_new_tokens": 40,
            "host": "127.0.0.1",
            "port": 0,
            "logging": False,
        }
        server = kind({**keys, **config})
        self._made.append(server)
        return server

    def open(self, kind: type[JAXServer] = JAXServer, **config: Any) -> JAXServer:
        server = self.make(kind, **config)
        server.open()
        return server

    def end(self) -> None:
        """All at the same time: each waits a moment for its connections."""
        with ThreadPoolExecutor(len(self._made) or 1) as threads:
            list(threads.map(lambda server: server.end(0.0), self._made))


@contextlib.contextmanager
def tiny_servers() -> Iterator[Servers]:
    """While it lasts, every server that is opened is over the tiny parts."""
    servers = Servers()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server_module, "load_model", tiny_parts)
        patch.setattr(hosting, "compile_model", tiny_steps)
        try:
            yield servers
        finally:
            servers.end()


def page_texts(server: JAXServer, page: str, text: str, **fields: Any) -> list[str]:
    """What a client of the chat or instruct page is shown, each text once."""
    address = f"{server.url}/gradio_{page}"
    client = Client(address, verbose=False, analytics_enabled=False)
    return list(dict.fromkeys(client.submit(text, **fields, api_name=f"/{page}")))
