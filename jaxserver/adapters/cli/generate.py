"""`jaxserver generate`: one prompt, one answer."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from jaxserver.adapters.cli.answer import Answer, beginning, opened, read, write
from jaxserver.adapters.cli.options import INTERRUPTED, Quiet, System
from jaxserver.adapters.cli.program import Program
from jaxserver.adapters.cli.sampling import SamplingFlags
from jaxserver.adapters.cli.setting_options import ANSWER, OUTPUT
from jaxserver.ports.config import ServerConfig
from jaxserver.ports.errors import InvalidRequest, NoChatTemplate
from jaxserver.ports.prompt import PromptFormatter, Rendered
from jaxserver.ports.receipt import Receipt
from jaxserver.ports.types import (
    FinishReason,
    GenerationRequest,
    Message,
    TokenLogprob,
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class GenerateFlags:
    prompt: Annotated[
        str,
        typer.Argument(
            metavar="PROMPT",
            help="What to say; - reads it from the standard input, less the last "
            "line break.",
        ),
    ]
    system: System = None
    raw: Annotated[
        bool,
        typer.Option(
            "--raw",
            help="Continue the prompt as it is, without the model's chat template.",
            rich_help_panel=ANSWER,
        ),
    ] = False
    as_json: Annotated[
        bool,
        typer.Option(
            "--json",
            help="Print one JSON object: text, token ids, counts, finish reason, seed.",
            rich_help_panel=OUTPUT,
        ),
    ] = False
    logprobs: Annotated[
        int | None,
        typer.Option(
            help="With --json: log-probabilities of the tokens and of so many others.",
            rich_help_panel=OUTPUT,
        ),
    ] = None
    receipt: Annotated[
        Path | None,
        typer.Option(
            metavar="<file>",
            help="Write there, as JSON, what `jaxserver replay` runs the answer "
            "again from.",
            rich_help_panel=OUTPUT,
        ),
    ] = None
    quiet: Quiet = False


def generate(
    program: Program,
    config: ServerConfig,
    flags: GenerateFlags,
    sampling: SamplingFlags,
) -> None:
    """Answer one prompt.

    The prompt is put to the model as a user's message; a model without a chat
    template continues it as it is. Ctrl-C stops the answer.
    """
    if flags.raw and flags.system is not None:
        raise typer.BadParameter("goes with no --raw", param_hint="--system")
    if flags.logprobs is not None and not flags.as_json:
        raise typer.BadParameter("needs --json", param_hint="--logprobs")
    params = sampling.params(logprobs=flags.logprobs)
    quiet = flags.quiet or flags.as_json
    text = flags.prompt if flags.prompt != "-" else sys.stdin.read().removesuffix("\n")
    with opened(program, config, quiet=quiet) as model:
        request = GenerationRequest(
            prompt=_prompt(model.formatter, text, flags),
            sampling=params,
            streaming=not flags.as_json,
            receipt=flags.receipt is not None,
        )
        stream = model.generator.generate(request)
        answer = read(stream, show=not flags.as_json)
        write(f"{json.dumps(_as_json(answer, flags))}\n" if flags.as_json else "\n")
    if not quiet:
        typer.echo(answer.summary, err=True)
    if flags.receipt is not None and answer.last.receipt is not None:
        _save(flags.receipt, answer.last.receipt)
    if answer.finish_reason is FinishReason.CANCELLED:
        raise typer.Exit(INTERRUPTED)


def _save(file: Path, receipt: Receipt) -> None:
    try:
        file.write_text(f"{json.dumps(receipt.to_json(), indent=2)}\n", "utf-8")
    except OSError as error:
        got = f"{file} ({(error.strerror or str(error)).lower()})"
        raise InvalidRequest("receipt", got, "a file that can be written") from None


def _prompt(formatter: PromptFormatter, text: str, flags: GenerateFlags) -> str:
    """The text to continue, rendered where there is a template and it is wanted."""
    if flags.raw:
        return text
    message = Message(role="user", content=text)
    try:
        return Rendered.by(formatter, [*beginning(flags.system), message])
    except NoChatTemplate:
        if flags.system is not None:
            raise
        return text


def _as_json(answer: Answer, flags: GenerateFlags) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "text": answer.text,
        "token_ids": answer.token_ids,
        "prompt_tokens": answer.last.usage.prompt_tokens,
        "completion_tokens": answer.last.usage.completion_tokens,
        "finish_reason": answer.finish_reason.value,
        "seed": answer.last.seed,
    }
    if flags.logprobs is not None:
        fields["logprobs"] = [_logprob_as_json(entry) for entry in answer.logprobs]
    return fields


def _logprob_as_json(entry: TokenLogprob) -> dict[str, Any]:
    """A Python float's `repr` has digits enough for every bit of a float32."""
    fields: dict[str, Any] = {
        "token_id": entry.token_id,
        "token": entry.token_bytes.decode(errors="replace"),
        "bytes": list(entry.token_bytes),
        "logprob": entry.logprob,
    }
    if entry.top:
        fields["top"] = [_logprob_as_json(other) for other in entry.top]
    return fields
