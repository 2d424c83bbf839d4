"""Two processes serve one model as one server, and fail as one."""

import contextlib
import itertools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import pytest

from jaxserver import JAXServer
from tests.e2e.test_serve import free_port
from tests.unit.tiny_folder import write_model
from tests.waiting import eventually

SETTINGS: dict[str, Any] = {"slots": 4, "max_length": 128, "max_stream_tokens": 4}
PROMPTS = ("the cat", "a dog and a cat " * 3, "x")
EXIT_SECONDS = 5.0


class Both(NamedTuple):
    """Process 0, which is asked, and process 1, which follows it."""

    first: "subprocess.Popen[str]"
    second: "subprocess.Popen[str]"
    client: httpx.Client


def body(prompt: str, tokens: int = 16) -> dict[str, Any]:
    wishes = {"max_tokens": tokens, "temperature": 1.0, "seed": 5, "logprobs": 2}
    return {"prompt": prompt, **wishes, "ignore_eos": True}


def started(model: Path, port: int, *flags: str) -> "subprocess.Popen[str]":
    settings = [f"--{key.replace('_', '-')}={value}" for key, value in SETTINGS.items()]
    command = [sys.executable, "-m", "jaxserver", "serve", "--host", "127.0.0.1"]
    return subprocess.Popen(
        [*command, f"--port={port}", f"--model={model}", "--quiet", *settings, *flags],
        env=os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@contextlib.contextmanager
def both(model: Path) -> Iterator[Both]:
    """Two processes of two devices each, ready; they are killed in the end."""
    port, meeting = free_port(), free_port()
    together = [f"--coordinator=127.0.0.1:{meeting}", "--num-processes=2"]
    first, second = (
        started(model, port, *together, f"--process-id={number}") for number in (0, 1)
    )
    url = f"http://127.0.0.1:{port}"
    with first, second, httpx.Client(base_url=url, timeout=60) as client:
        try:
            assert first.stdout is not None
            assert f"jaxserver ready on {url}\n" in first.stdout  # Gloo talks there too
            yield Both(first, second, client)
        finally:
            first.kill()
            second.kill()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


def answer(client: httpx.Client, prompt: str) -> tuple[list[str], list[float]]:
    """Its tokens and their log-probabilities."""
    response = client.post("/v1/completions", json=body(prompt))
    assert response.status_code == 200, response.text
    logprobs = response.json()["choices"][0]["logprobs"]
    return logprobs["tokens"], logprobs["token_logprobs"]


@contextlib.contextmanager
def one(model: Path) -> Iterator[httpx.Client]:
    """One process whose mesh is that of the two: four devices along `fsdp`."""
    config = {"mesh_axes_shape": (1, 4, 1), "host": "127.0.0.1", "port": 0}
    server = JAXServer.load(model, {**SETTINGS, **config, "logging": False})
    with httpx.Client(base_url=server.fire(), timeout=60) as client:
        yield client
    server.end()


def test_two_processes_answer_as_one_and_leave_together(model: Path) -> None:
    with both(model) as processes, one(model) as client:
        for prompt in PROMPTS:
            tokens, logprobs = answer(processes.client, prompt)
            expected_tokens, expected = answer(client, prompt)
            assert tokens == expected_tokens
            # Between processes, sums over the mesh are added up in another order.
            np.testing.assert_allclose(logprobs, expected, rtol=1e-5, atol=1e-5)
            assert answer(processes.client, prompt) == (tokens, logprobs)
        processes.first.terminate()
        assert processes.first.wait(30) == 0
        assert processes.second.wait(30) == 0


@pytest.mark.parametrize("is_busy", [True, False], ids=["stepping", "idle"])
def test_a_process_that_is_lost_ends_the_other(model: Path, is_busy: bool) -> None:
    with both(model) as processes:
        asking = threading.Thread(target=ask_on, args=(processes.client,), daemon=True)
        if is_busy:
            asking.start()
            assert eventually(lambda: slots_in_use(processes.client) > 0)
        processes.second.kill()
        killed_seconds = time.monotonic()

        assert eventually(lambda: health(processes.client) == 503, EXIT_SECONDS)
        assert processes.first.wait(EXIT_SECONDS) == 1
        assert time.monotonic() - killed_seconds < EXIT_SECONDS
        assert processes.first.stderr is not None
        assert "the engine died" in processes.first.stderr.read()


def ask_on(client: httpx.Client) -> None:
    """Keeps the engine stepping until nobody answers any more."""
    with contextlib.suppress(httpx.HTTPError):
        for number in itertools.count():
            client.post("/v1/completions", json=body(f"{number} cats", tokens=100))


def slots_in_use(client: httpx.Client) -> int:
    return int(client.get("/status").json()["slots_in_use"])


def health(client: httpx.Client) -> int | None:
    with contextlib.suppress(httpx.HTTPError):
        return client.get("/health").status_code
    return None
