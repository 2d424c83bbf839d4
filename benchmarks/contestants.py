"""What is compared: servers asked over HTTP, and libraries in their own processes."""

import asyncio
import contextlib
import dataclasses
import json
import os
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import httpx

from benchmarks.load import COMMON, Dialect, Workload, client_of, drive
from benchmarks.starting import started

ROOT = Path(__file__).parents[1]
PEERS = "benchmarks.peers"
TIMEOUT_SECONDS = 900
KEPT_SECONDS = 86_400
"""How long transformers' server keeps a model that nobody asks."""


class Missing(Exception):
    """It is not on this machine."""


class Sample(NamedTuple):
    """One workload, done once.

    Attributes:
        tokens_per_second: Tokens of all answers, by the time from the first request to
            the last answer.
        first_seconds: Median time to the first token.
    """

    tokens_per_second: float
    first_seconds: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What all of them are given.

    Attributes:
        file: The model in GGUF.
        config: Its sizes, as transformers names them.
        slots: Most requests at a time.
        threads: How many threads each may use; ours takes all.
        serve: Further arguments of `jaxserver serve`.
        pythons: An interpreter that has the library, by the name it is asked for.
        context: Tokens that llama.cpp's server has room for in each slot.
    """

    file: Path
    config: Mapping[str, Any]
    slots: int
    threads: int
    serve: Sequence[str]
    pythons: Mapping[str, str]
    context: int = 512

    def python(self, name: str) -> str:
        """The interpreter of a library.

        Raises:
            Missing: None was named.
        """
        if name not in self.pythons:
            raise Missing(f"no --peer-python {name}=PATH")
        return self.pythons[name]


Measure: TypeAlias = Callable[[Workload], Sample]


def over_http(url: str, dialect: Dialect = COMMON) -> Measure:
    """Asks a server that speaks OpenAI's language, in one of its dialects."""

    async def ask(workload: Workload) -> Sample:
        async with client_of(url, TIMEOUT_SECONDS) as client:
            run = await drive(client, dataclasses.replace(workload, dialect=dialect))
        if run.failures:
            raise SystemExit(f"{url}: {run.failures[0]}")
        if any(answer.tokens != workload.new_tokens for answer in run.answers):
            raise SystemExit(f"{url}: an answer of another length")
        return Sample(
            sum(answer.tokens for answer in run.answers) / run.wall_seconds,
            statistics.median(a.stamps[0] - a.sent for a in run.answers),
        )

    return lambda workload: asyncio.run(ask(workload))


@contextlib.contextmanager
def jaxserver(setting: Setting, *arguments: str) -> Iterator[Measure]:
    flags = ["--slots", str(setting.slots), *setting.serve, *arguments]
    with (
        tempfile.TemporaryDirectory() as cache,
        started(str(setting.file), Path(cache), flags) as server,
    ):
        yield over_http(server.url)


@contextlib.contextmanager
def llama_server(setting: Setting) -> Iterator[Measure]:
    """llama.cpp's own server."""
    program = shutil.which("llama-server")
    if program is None:
        raise Missing("no llama-server on the path")
    command = [
        *(program, "--model", str(setting.file), "--threads", str(setting.threads)),
        *("--parallel", str(setting.slots)),
        *("--ctx-size", str(setting.context * setting.slots)),
    ]
    with _served(command) as url:
        yield over_http(url)


@contextlib.contextmanager
def transformers_serve(setting: Setting) -> Iterator[Measure]:
    """The server that comes with transformers, with continuous batching."""
    python = setting.python("transformers_serve")
    with tempfile.TemporaryDirectory() as folder:
        script = [python, "-m", f"{PEERS}.to_folder", str(setting.file), folder]
        subprocess.run(script, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
        command = [python, "-m", f"{PEERS}.with_serve", "serve"]
        command += ["--continuous-batching", "--device", "cpu", "--dtype", "bfloat16"]
        command += ["--model-timeout", str(KEPT_SECONDS)]
        with _served(command, OMP_NUM_THREADS=str(setting.threads)) as url:
            measure = over_http(url, Dialect(wishes={"model": folder}, has_usage=False))
            measure(Workload(clients=1, requests=1, new_tokens=2))  # loads the model
            yield measure


@contextlib.contextmanager
def _served(command: Sequence[str], **environment: str) -> Iterator[str]:
    """The address of a process that serves on a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with subprocess.Popen(
        [*command, "--host", "127.0.0.1", "--port", str(port)],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        url = f"http://127.0.0.1:{port}"
        try:
            _wait_for(url, process)
            yield url
        finally:
            process.terminate()


def _wait_for(url: str, process: "subprocess.Popen[bytes]") -> None:
    until = time.monotonic() + TIMEOUT_SECONDS
    while time.monotonic() < until and process.poll() is None:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"{url}/health", trust_env=False).is_success:
                return
        time.sleep(0.1)
    raise SystemExit(f"{process.args!r} is not ready")


@contextlib.contextmanager
def library(
    setting: Setting, python: str, script: str, *arguments: str
) -> Iterator[Measure]:
    """Runs all clients' requests as one batch, and after it the next one."""
    chance = random.Random(0)
    vocab = setting.config["vocab_size"]
    with subprocess.Popen(
        [python, "-m", f"{PEERS}.{script}", *arguments],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:

        def say(content: Mapping[str, Any]) -> dict[str, Any]:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(json.dumps(content) + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
            if not answer:
                raise SystemExit(f"{script} of {python} ended")
            heard: dict[str, Any] = json.loads(answer)
            return heard

        def measure(workload: Workload) -> Sample:
            if workload.text != "words":
                raise SystemExit(f"{script} is asked in tokens: leave it out by --only")
            rows, length = workload.clients, workload.prompt_tokens
            prompts = [chance.choices(range(vocab), k=length) for _ in range(rows)]
            done = say({"prompts": prompts, "new_tokens": workload.new_tokens})
            made = rows * workload.new_tokens
            return Sample(made / done["seconds"], done["first_seconds"])

        what = {"file": str(setting.file), "threads": setting.threads}
        try:
            say({**what, "config": setting.config})
            yield measure
        finally:
            process.terminate()


def torch(setting: Setting, dtype: str) -> AbstractContextManager[Measure]:
    return library(setting, setting.python("torch"), "with_torch", dtype)


def flax(setting: Setting, form: str) -> AbstractContextManager[Measure]:
    return library(setting, sys.executable, "with_flax", form)


CONTESTANTS: Mapping[str, Callable[[Setting], AbstractContextManager[Measure]]] = {
    "jaxserver": jaxserver,
    "jaxserver, native": lambda setting: jaxserver(setting, "--kernels", "native"),
    "jaxserver, fast": lambda setting: jaxserver(setting, "--numerics", "fast"),
    "llama-server": llama_server,
    "transformers serve": transformers_serve,
    "PyTorch generate, bfloat16": lambda setting: torch(setting, "bfloat16"),
    "PyTorch generate, float32": lambda setting: torch(setting, "float32"),
    "Flax generate": lambda setting: flax(setting, "shipped"),
    "Flax generate, jitted": lambda setting: flax(setting, "jitted"),
}
