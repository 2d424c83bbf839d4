"""The README's code runs, against the server that is there."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

import jaxserver
from jaxserver import JAXServer

pytestmark = pytest.mark.model
README = (Path(jaxserver.__file__).parents[1] / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
CURL = re.findall(r"^curl .*$", README, re.MULTILINE)
ADDRESS = "http://127.0.0.1:2059"


@pytest.fixture
def _here(loaded_server: JAXServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """What would be loaded is there already, and stays."""
    monkeypatch.setattr(JAXServer, "load", lambda: loaded_server)
    monkeypatch.setattr(loaded_server, "end", lambda: None)


def test_there_is_python_to_run() -> None:
    assert len(PYTHON) == 7
    assert len(CURL) == 2


@pytest.mark.usefixtures("_here")
@pytest.mark.parametrize("code", PYTHON)
def test_python_runs(code: str, loaded_server: JAXServer) -> None:
    names: dict[str, Any] = {"__name__": "readme"}
    try:
        exec(code.replace(ADDRESS, loaded_server.url), names)
    finally:
        if isinstance(client := names.get("client"), openai.OpenAI):
            client.close()


@pytest.mark.parametrize("line", CURL)
def test_the_request_of_curl_is_answered(line: str, server_url: str) -> None:
    _, url, _, header, _, body = shlex.split(line)
    name, _, value = header.partition(": ")
    answer = httpx.post(
        url.replace(ADDRESS, server_url),
        headers={name: value},
        content=body,
        timeout=60,
    )
    assert answer.status_code == 200
    asked = json.loads(body)
    assert answer.json()["seed"] == asked.get("seed", answer.json()["seed"])
