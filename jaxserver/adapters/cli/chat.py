"""`jaxserver chat`: a conversation in the terminal, or through a pipe."""

import contextlib
import dataclasses
import sys
from collections.abc import Iterator

import typer

from jaxserver.adapters.cli.answer import Answer, beginning, opened, read, write
from jaxserver.adapters.cli.options import INTERRUPTED, Quiet, System
from jaxserver.adapters.cli.program import OpenModel, Program
from jaxserver.adapters.cli.sampling import SamplingFlags
from jaxserver.ports.config import ServerConfig
from jaxserver.ports.errors import PromptTooLong
from jaxserver.ports.prompt import Rendered
from jaxserver.ports.types import GenerationRequest, Message, SamplingParams

CLEAR, EXIT = "/clear", "/exit"
WELCOME = f"{CLEAR} forgets the conversation, {EXIT} or Ctrl-D ends, Ctrl-C stops."


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ChatFlags:
    system: System = None
    quiet: Quiet = False


def chat(
    program: Program, config: ServerConfig, flags: ChatFlags, sampling: SamplingFlags
) -> None:
    """Talk to the model.

    Every line is one message; /clear forgets the conversation, /exit or Ctrl-D ends.
    Ctrl-C stops an answer; at the prompt, or twice, it ends the program.
    """
    params = sampling.params()
    is_interactive = sys.stdin.isatty() and sys.stdout.isatty()
    with opened(program, config, quiet=flags.quiet) as model:
        if is_interactive and not flags.quiet:
            typer.echo(WELCOME, err=True)
        history = beginning(flags.system)
        for line in _lines(is_interactive=is_interactive):
            if line == CLEAR:
                history = beginning(flags.system)
                continue
            asked = (*history, Message(role="user", content=line))
            try:
                answer = _answer(model, params, asked)
            except PromptTooLong as error:
                if not is_interactive:
                    raise
                typer.echo(f"error: {error}; {CLEAR} begins anew", err=True)
                continue
            history = (*asked, Message(role="assistant", content=answer.text))
            if not flags.quiet:
                typer.echo(answer.summary, err=True)


def _lines(*, is_interactive: bool) -> Iterator[str]:
    """What the user says, until the end of input or the command to end."""
    if is_interactive:
        with contextlib.suppress(ImportError):  # it gives `input` editing
            import readline  # noqa: F401, PLC0415  # it may write to the terminal
    try:
        while (line := input("> " if is_interactive else "").strip()) != EXIT:
            if line:
                yield line
    except EOFError:
        write("\n" if is_interactive else "")
    except KeyboardInterrupt:
        write("\n")
        raise typer.Exit(INTERRUPTED) from None


def _answer(
    model: OpenModel, params: SamplingParams, messages: tuple[Message, ...]
) -> Answer:
    prompt = Rendered.by(model.formatter, messages)
    request = GenerationRequest(prompt=prompt, sampling=params)
    answer = read(model.generator.generate(request), show=True)
    write("\n")
    return answer
