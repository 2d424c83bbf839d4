"""Keys of several processes that do not fit each other are refused before any waits."""

from typing import Any

import pytest

from jaxserver.ports.config import ServerConfig
from jaxserver.ports.errors import InvalidConfig
from jaxserver.processes import join

TWO = {"num_processes": 2, "coordinator": "127.0.0.1:1"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"process_id": 1}, "process_id: got 1, allowed is less than num_processes, 1"),
        ({"num_processes": 2}, "coordinator: got none, allowed is HOST:PORT"),
        ({**TWO, "process_id": 2}, "process_id: got 2"),
        ({**TWO, "pre_compile": False}, "pre_compile: got false, allowed is true"),
    ],
)
def test_settings_that_do_not_fit_are_named(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidConfig, match=message):
        join(ServerConfig.of(settings))


def test_one_process_waits_for_nobody() -> None:
    join(ServerConfig())
