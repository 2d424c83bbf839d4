"""A program made of fakes, for the command line to drive."""

import contextlib
from collections.abc import Callable, Iterator, Sequence

import typer
from rich.text import Text
from typer.testing import CliRunner, Result

from jaxserver.adapters.cli.app import build
from jaxserver.adapters.cli.program import OnReady, OpenModel, Program
from jaxserver.ports.config import ServerConfig
from jaxserver.ports.errors import NoChatTemplate
from jaxserver.ports.generator import Generator
from jaxserver.ports.memory import MemoryPlan
from jaxserver.ports.progress import Progress
from jaxserver.ports.prompt import PromptFormatter
from jaxserver.ports.types import Chunk, GenerationRequest, Message
from tests.fakes import ByteFormatter, ScriptedGenerator, ScriptedStream

PLAN = MemoryPlan(
    model="tiny",
    num_parameters=1_234_567,
    num_devices=2,
    slots=4,
    max_length=2048,
    dtype="float32",
    weights_bytes_per_device=3_000_000,
    cache_bytes_per_device=500_000,
)


class NoTemplate:
    """The formatter of a checkpoint that has no chat template."""

    def format(self, messages: Sequence[Message]) -> str:
        raise NoChatTemplate("format_chat")

    def system_turn(self, messages: Sequence[Message]) -> str:
        raise NoChatTemplate("format_chat")


class ChunkGenerator:
    """Answers with given chunks."""

    def __init__(self, chunks: Sequence[Chunk]) -> None:
        self.chunks = chunks

    def generate(self, request: GenerationRequest) -> ScriptedStream:
        return ScriptedStream(self.chunks, 0.0)


class ScriptedProgram:
    """Remembers what the command line asked of it.

    Answers are the pieces, or come from the generator `answers` where given. `fail`,
    where set, makes the error that every function raises.
    """

    def __init__(
        self,
        *pieces: str,
        formatter: PromptFormatter | None = None,
        answers: Generator | None = None,
    ) -> None:
        self.generator = ScriptedGenerator(*(pieces or ("Hello", " you")))
        self.answers = answers
        self.formatter = formatter or ByteFormatter()
        self.configs: list[ServerConfig] = []
        self.pulled: list[str] = []
        self.address = "http://127.0.0.1:2059"
        self.memory = PLAN
        self.fail: Callable[[], Exception] | None = None
        self.is_open = False

    @property
    def prompts(self) -> list[str | tuple[int, ...]]:
        return [request.prompt for request in self.generator.requests]

    def run(
        self,
        *arguments: str,
        input_text: str | bytes | None = None,
        env: dict[str, str] | None = None,
    ) -> Result:
        runner = CliRunner(env={"COLUMNS": "80", **(env or {})})
        app = self.application()
        return runner.invoke(app, arguments, input=input_text, prog_name="jaxserver")

    def application(self) -> typer.Typer:
        return build(
            Program(
                open=self._open, serve=self._serve, pull=self._pull, plan=self._plan
            )
        )

    @contextlib.contextmanager
    def _open(self, config: ServerConfig, progress: Progress) -> Iterator[OpenModel]:
        self._note(config)
        progress("load", 5, 10)
        self.is_open = True
        generator: Generator = self.answers or self.generator
        yield OpenModel(generator=generator, formatter=self.formatter)
        self.is_open = False

    def _serve(
        self, config: ServerConfig, progress: Progress, on_ready: OnReady
    ) -> None:
        self._note(config)
        progress("compile", 1, 2)
        on_ready(self.address)

    def _pull(self, model: str, progress: Progress) -> str:
        self.pulled.append(model)
        if self.fail is not None:
            raise self.fail()
        progress("download", 1, 0)
        return f"/models/{model}"

    def _plan(self, config: ServerConfig) -> MemoryPlan:
        self._note(config)
        return self.memory

    def _note(self, config: ServerConfig) -> None:
        self.configs.append(config)
        if self.fail is not None:
            raise self.fail()


def plain(output: str) -> str:
    """Without colours, which a build machine may ask for."""
    return Text.from_ansi(output).plain
