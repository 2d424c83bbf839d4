"""One loaded server for the tests that ask the default model, and a browser."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from jaxserver import JAXServer
from tests.e2e.browsing import launched, opened_tab


@pytest.fixture(scope="session")
def loaded_server(default_model_path: Path) -> Iterator[JAXServer]:
    """The default model in float32 with 16 slots, listening on a free port."""
    with listening(default_model_path, "none") as server:
        yield server


@pytest.fixture(scope="session")
def int8_server(default_model_path: Path) -> Iterator[JAXServer]:
    """The same in int8."""
    with listening(default_model_path, "int8") as server:
        yield server


@pytest.fixture(params=["loaded_server", "int8_server"])
def either_server(request: pytest.FixtureRequest) -> JAXServer:
    """One after the other."""
    server: JAXServer = request.getfixturevalue(request.param)
    return server


@contextlib.contextmanager
def listening(path: Path, quantize: str) -> Iterator[JAXServer]:
    server = JAXServer.load(
        path,
        {
            "dtype": "fp32",
            "quantize": quantize,
            "slots": 16,
            "host": "127.0.0.1",
            "port": 0,
            "max_length": 1024,
            "mesh_axes_shape": (1, 1, 1),
            "logging": False,
        },
    )
    server.fire()
    try:
        yield server
    finally:
        server.end()


@pytest.fixture(scope="session")
def server_url(loaded_server: JAXServer) -> str:
    """Where the loaded server listens."""
    return loaded_server.url


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launched() as browser:
        yield browser


@pytest.fixture
def tab(browser: Browser) -> Iterator[Page]:
    with opened_tab(browser) as page:
        yield page
