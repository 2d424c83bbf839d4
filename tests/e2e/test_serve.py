"""`jaxserver serve` as a process: listens, loads, answers, drains and leaves."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.waiting import eventually

pytestmark = pytest.mark.model
LONG = {"prompt": "Count to a thousand.", "max_tokens": 60, "ignore_eos": True}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


@contextlib.contextmanager
def serving(model: Path, port: int) -> Iterator["subprocess.Popen[str]"]:
    """A process that was just started; it is killed if it does not leave by itself."""
    command = [sys.executable, "-m", "jaxserver", "serve", "--host", "127.0.0.1"]
    sizes = ["--port", str(port), "--slots", "4", "--max-length", "256", "--quiet"]
    process = subprocess.Popen(
        [*command, *sizes, "--model", str(model)],
        env={key: text for key, text in os.environ.items() if key != "XLA_FLAGS"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def test_it_listens_before_it_loads_and_lets_answers_end(
    default_model_path: Path,
) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with (
        serving(default_model_path, port) as process,
        httpx.Client(base_url=url, timeout=60) as client,
    ):
        assert eventually(lambda: is_listening(port), seconds=60)
        says_that_it_loads(client)

        assert process.stdout is not None
        assert process.stdout.readline() == f"jaxserver ready on {url}\n"
        says_that_it_is_ready(client)

        answers: list[httpx.Response] = []
        asking = threading.Thread(
            target=lambda: answers.append(client.post("/v1/completions", json=LONG))
        )
        asking.start()
        assert eventually(lambda: status(client)["slots_in_use"] == 1)
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        asking.join()
        assert answers[0].json()["usage"]["completion_tokens"] == 60
        assert process.wait(30) == 0
        assert time.monotonic() - began < 60
        assert process.stdout.read() == ""


def is_listening(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
        return True
    return False


def status(client: httpx.Client) -> dict[str, Any]:
    answer: dict[str, Any] = client.get("/status").json()
    return answer


def says_that_it_loads(client: httpx.Client) -> None:
    assert status(client)["state"] in {"loading", "compiling"}
    assert client.get("/health").status_code == 200
    assert client.get("/ready").status_code == 503
    assert client.post("/instruct", json={"prompt": "x"}).json() == {"status": "down"}
    refused = client.post("/v1/completions", json=LONG)
    assert refused.status_code == 503
    assert int(refused.headers["retry-after"]) > 0


def says_that_it_is_ready(client: httpx.Client) -> None:
    assert status(client)["state"] == "ready"
    assert client.get("/ready").status_code == 200
    asked = {"prompt": "What is the capital of France?", "greedy": True}
    assert "Paris" in client.post("/instruct", json=asked).json()["response"]


def test_a_signal_while_it_loads_ends_it_at_once(default_model_path: Path) -> None:
    port = free_port()
    with serving(default_model_path, port) as process:
        assert eventually(lambda: is_listening(port), seconds=60)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 128 + signal.SIGTERM
