"""One loaded server for all the tests that ask the default model something."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from jaxserver import JAXServer


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
