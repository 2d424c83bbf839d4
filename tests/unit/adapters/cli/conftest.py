"""Keeps the variables of whoever runs the tests out of them."""

import os

import pytest


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("JAXSERVER_")]:
        monkeypatch.delenv(name)
