"""One loaded server for the tests that ask the default model, and a browser."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from jaxserver import JAXServer
from tests.e2e.browsing import launched, opened_tab


@pytest.fixture(scope="session")
def loaded_server(default_model_path: Path) -> Iterator[JAXServer]:
    """The default model in float32 with 16 slots, listening on a free port."""
    server = JAXServer.load(
        default_model_path,
        {
            "dtype": "fp32",
            "quantize": "none",
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
