"""`jaxserver serve` as a process that is told to stop, is killed, or breaks inside."""

import concurrent.futures
import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from tests.e2e.test_serve import free_port
from tests.unit.tiny_folder import write_model
from tests.waiting import eventually

SIZES = {
    "slots": 4,
    "batch_size": 8,
    "max_length": 128,
    "max_stream_tokens": 4,
    "max_queue": 64,
}
"""Few executables."""
CLIENTS = 20
PROMPTS = ("the cat", "a dog and a cat " * 3, "x", "hello", "quick")
ROOT = Path(__file__).parents[2]
READY_SECONDS = 60.0
PATH = "/v1/completions"
SERVE = "from jaxserver.__main__ import main\nmain()\n"


class Started(NamedTuple):
    """A process that serves, or will.

    Attributes:
        said: What it has written to its standard error goes there.
    """

    process: "subprocess.Popen[str]"
    url: str
    said: Path

    def is_ready(self) -> bool:
        """Waits for its one line."""
        assert self.process.stdout is not None
        return self.process.stdout.readline() == f"jaxserver ready on {self.url}\n"

    def client(self) -> httpx.Client:
        """Connects anew for every request."""
        limits = httpx.Limits(max_keepalive_connections=0)
        return httpx.Client(base_url=self.url, limits=limits, verify=False, timeout=60)

    def post(self, body: dict[str, Any]) -> httpx.Response:
        with self.client() as client:
            return client.post(PATH, json=body)

    def get(self, path: str) -> httpx.Response | None:
        """What it answers while it does."""
        with self.client() as client, contextlib.suppress(httpx.TransportError):
            return client.get(path)
        return None


@contextlib.contextmanager
def started(
    model: Path, cache: Path, *flags: str, program: str = SERVE
) -> Iterator[Started]:
    """A process that is killed in the end if it is still there."""
    port = free_port()
    settings = [f"--{key.replace('_', '-')}={value}" for key, value in SIZES.items()]
    arguments = ["serve", "--host=127.0.0.1", f"--port={port}", f"--model={model}"]
    said = cache / f"said-{port}"
    cache.mkdir(exist_ok=True)
    environment = {key: text for key, text in os.environ.items() if key != "XLA_FLAGS"}
    with (
        said.open("w") as stderr,
        subprocess.Popen(
            [sys.executable, "-c", program, *arguments, *settings, *flags],
            env=environment | {"JAXSERVER_CACHE": str(cache)},
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            cwd=ROOT,
        ) as process,
    ):
        try:
            yield Started(process, f"http://127.0.0.1:{port}", said)
        finally:
            process.kill()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds compiled code for all of these processes."""
    return tmp_path_factory.mktemp("cache")


def body(prompt: str, **fields: Any) -> dict[str, Any]:
    wishes = {"max_tokens": 60, "temperature": 1.0, "seed": 5, "ignore_eos": True}
    return {"prompt": prompt, **wishes, **fields}


def text_of(response: Any) -> str | None:
    """The whole answer, streamed or not, or None where there is none."""
    if response.status_code != 200:
        return None
    if not response.headers["content-type"].startswith("text/event-stream"):
        return str(response.json()["choices"][0]["text"])
    *events, done = response.text.strip().split("\n\n")
    assert done == "data: [DONE]", done
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    return "".join(chunk["choices"][0]["text"] for chunk in chunks)


class Restarted(NamedTuple):
    """A server after another one was killed while it compiled.

    Attributes:
        broken: A file of compiled code that was cut in two.
        whole_bytes: Its size before.
    """

    server: Started
    broken: Path
    whole_bytes: int


@pytest.fixture(scope="module")
def restarted(model: Path, cache: Path) -> Iterator[Restarted]:
    compiled = cache / "compiled"
    with started(model, cache) as killed:
        assert eventually(lambda: any(compiled.glob("*-cache")), READY_SECONDS)
        killed.process.kill()
        assert killed.process.wait() == -signal.SIGKILL
    broken = sorted(compiled.glob("*-cache"))[0]
    content = broken.read_bytes()
    broken.write_bytes(content[: len(content) // 2])
    with started(model, cache) as server:
        assert server.is_ready()
        yield Restarted(server, broken, len(content))


@pytest.fixture(scope="module")
def expected(restarted: Restarted) -> dict[str, str | None]:
    """What each prompt is answered where nothing disturbs."""
    return {prompt: text_of(restarted.server.post(body(prompt))) for prompt in PROMPTS}


def test_a_kill_while_it_compiles_leaves_nothing_that_harms(
    restarted: Restarted, expected: dict[str, str | None]
) -> None:
    assert None not in expected.values()
    said = restarted.server.said.read_text()
    assert [line for line in said.splitlines() if not line.startswith("{")] == [
        "float16 weights are kept in int8 and computed in float32 on this device"
    ]
    assert restarted.broken.stat().st_size > restarted.whole_bytes / 2


class Reply(NamedTuple):
    """What came of one request; no text where it was refused.

    Attributes:
        status: None where there was no connection, or it broke.
    """

    name: str
    prompt: str
    text: str | None
    status: int | None
    seconds: float


def ask_on(server: Started, number: int) -> list[Reply]:
    """Asks one thing after the other, until it is refused."""
    replies: list[Reply] = []
    with server.client() as client:
        for turn in itertools.count():
            name, prompt = (
                f"client {number}-{turn}",
                PROMPTS[(number + turn) % len(PROMPTS)],
            )
            wanted = body(prompt, stream=number % 2 == 0)
            text, status = None, None
            with contextlib.suppress(httpx.TransportError):
                response = client.post(
                    PATH, json=wanted, headers={"X-Request-Id": name}
                )
                text, status = text_of(response), response.status_code
            replies.append(Reply(name, prompt, text, status, time.monotonic()))
            if text is None:
                return replies
    raise AssertionError


def admitted(said: str) -> dict[str, str]:
    """The requests that the log has a line for, by name, and how they ended."""
    lines = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    return {line["x_request_id"]: line["outcome"] for line in lines}


def test_sigterm_under_load_loses_no_request_that_was_admitted(
    restarted: Restarted, expected: dict[str, str | None]
) -> None:
    server = restarted.server
    with concurrent.futures.ThreadPoolExecutor(CLIENTS) as pool:
        clients = [pool.submit(ask_on, server, number) for number in range(CLIENTS)]
        assert eventually(lambda: queue_length(server) > SIZES["slots"])
        told_seconds = time.monotonic()
        server.process.terminate()
        replies = [reply for client in clients for reply in client.result()]
        assert server.process.wait(30) == 0

    answered = [reply for reply in replies if reply.text is not None]
    assert {reply.text == expected[reply.prompt] for reply in answered} == {True}
    outcomes = admitted(server.said.read_text())
    assert set(outcomes.values()) == {"length"}
    names = {reply.name for reply in answered}
    assert names == {name for name in outcomes if "client" in name}
    late = [reply for reply in answered if reply.seconds > told_seconds]
    assert len(late) > SIZES["slots"]
    refused = {reply.status for reply in replies if reply.text is None}
    assert 503 in refused <= {503, None}


def queue_length(server: Started) -> int:
    status = server.get("/status")
    assert status is not None
    return int(status.json()["queue_length"])


BREAKING = """
import os
from pathlib import Path
import jax
from jaxserver import wiring
from jaxserver.__main__ import main

class Breaking(wiring.Device):
    num_blocks = 0

    def run(self, orders):
        is_told = (Path(os.environ["JAXSERVER_CACHE"]) / "{kind}").exists()
        Breaking.num_blocks += is_told and orders[-1].kind == "decode"
        outcome = super().run(orders)
        return outcome if Breaking.num_blocks < 12 else self.{kind}(outcome)

    def raises(self, outcome):
        def reset():
            raise MemoryError("no room for another cache")

        self.reset = reset
        raise RuntimeError("a step that fails")

    def hangs(self, outcome):
        endless = jax.jit(lambda x: jax.lax.while_loop(lambda y: y > 0, abs, x))(1)
        return outcome._replace(steps=endless)

wiring.Device = Breaking
main()
"""


KINDS = ("raises", "hangs")


@pytest.fixture(scope="module")
def breaking(
    model: Path, cache: Path, expected: dict[str, str | None]
) -> Iterator[dict[str, Started]]:
    """Servers whose engine breaks once there is a file of the kind's name."""
    with contextlib.ExitStack() as processes:

        def start(kind: str) -> Started:
            program = BREAKING.replace("{kind}", kind)
            limit = "--watchdog-seconds=2"
            process = started(model, cache, limit, program=program)
            return processes.enter_context(process)

        yield {kind: start(kind) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_an_engine_that_breaks_fails_its_streams_and_ends_the_process(
    breaking: dict[str, Started],
    cache: Path,
    expected: dict[str, str | None],
    kind: str,
) -> None:
    server = breaking[kind]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert server.is_ready()
        assert {p: text_of(server.post(body(p))) for p in PROMPTS} == expected
        (cache / kind).touch()
        wanted = [body("the cat", max_tokens=100, stream=n % 2 == 0) for n in range(8)]
        asked = [pool.submit(server.post, one) for one in wanted]
        assert eventually(lambda: health(server) == 503)
        answers = [future.result() for future in asked]
        assert server.process.wait(10) == 1

    assert {code_of(answer) for answer in answers} == {"engine_failed"}
    assert {answer.status_code for answer in answers} == {200, 500}
    said = server.said.read_text().splitlines()
    assert said[-1] == "error: the engine died or hangs; the server ends"


def health(server: Started) -> int | None:
    response = server.get("/health")
    return None if response is None else response.status_code


def code_of(response: httpx.Response) -> str:
    """Of the error that it is, or that it ends with where it is a stream."""
    content = response.text.strip().split("\n\n")[-1].removeprefix("data: ")
    return str(json.loads(content)["error"]["code"])
