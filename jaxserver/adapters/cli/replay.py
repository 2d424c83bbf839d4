"""`jaxserver replay`: an answer, run again from its receipt."""

import dataclasses
import itertools
import json
import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from jaxserver.adapters.cli.answer import opened, read
from jaxserver.adapters.cli.options import INTERRUPTED, Quiet
from jaxserver.adapters.cli.program import Program
from jaxserver.adapters.cli.setting_options import MODEL
from jaxserver.adapters.cli.settings import DEBUG_VARIABLE
from jaxserver.ports.config import ServerConfig
from jaxserver.ports.errors import InvalidRequest, JaxServerError
from jaxserver.ports.receipt import IDENTITY_FIELDS, Identity, Outcome, Receipt

DIFFERS, CANNOT_RUN = 1, 2


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ReplayFlags:
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="A receipt, or an answer of the HTTP API that has one.",
        ),
    ]
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            metavar="<str>",
            help="Where the model is found, if not under the name in the receipt.",
            rich_help_panel=MODEL,
        ),
    ] = None
    quiet: Quiet = False


def replay(program: Program, flags: ReplayFlags) -> None:
    """Run an answer again from its receipt, and compare.

    The exit code is 0 when it is bitwise the same, 1 when it differs, and 2 when it
    cannot be run.
    """
    with _failing_with_its_own_code():
        receipt = read_receipt(flags.file)
        again = _run_again(program, receipt, flags)
    changed = [*_changes(receipt.identity, again.identity)]
    difference = _difference(receipt.answer, again.answer)
    if difference is None:
        typer.echo(f"the same, bitwise: {_tokens(len(again.answer.ids))}")
    else:
        typer.echo(f"another answer: {difference}")
    for line in changed or [f"{', '.join(IDENTITY_FIELDS)}: as they were"]:
        typer.echo(line)
    if difference is not None:
        raise typer.Exit(DIFFERS)


def read_receipt(file: Path) -> Receipt:
    """The receipt in a file.

    Raises:
        InvalidRequest: It cannot be read, or is none; names the field.
    """
    try:
        content = json.loads(file.read_bytes())
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
    except (ValueError, RecursionError) as error:  # neither UTF-8 nor JSON
        reason = str(error)
    else:
        is_answer = isinstance(content, dict) and "receipt" in content
        return Receipt.from_json(content["receipt"] if is_answer else content)
    raise InvalidRequest("receipt", f"{file} ({reason})", "a JSON file")


def _run_again(program: Program, receipt: Receipt, flags: ReplayFlags) -> Receipt:
    model = flags.model or receipt.identity.model
    # Only what one answer needs is compiled.
    config = ServerConfig.of({**receipt.identity.config, "pre_compile": False}, model)
    with opened(program, config, quiet=flags.quiet) as loaded:
        stream = loaded.generator.generate(receipt.request)
        again = read(stream, show=False).last.receipt
    if again is None:
        raise KeyboardInterrupt
    return again


def _difference(before: Outcome, after: Outcome) -> str | None:
    """Where the answers part, in words; None where they do not."""
    pairs = itertools.zip_longest(before.ids, after.ids)
    for position, (old, new) in enumerate(pairs):
        if old != new:
            olds, news = (_token(each) for each in (old, new))
            return f"token {position}, from 0, is {news} and was {olds}"
    if before.digest != after.digest:
        return "the tokens are those that are listed, but their digest is another"
    if before != after:
        return "the tokens are the same, log-probabilities are not"
    return None


def _changes(before: Identity, after: Identity) -> Iterator[str]:
    """What is not as it was, each in a line."""
    olds, news = before.to_json(), after.to_json()
    for name in IDENTITY_FIELDS:
        if isinstance(olds[name], dict):
            yield from _changes_within(name, olds[name], news[name])
        elif olds[name] != news[name]:
            new, old = (_value(values, name) for values in (news, olds))
            yield f"{name} differs: {new}, was {old}"


def _changes_within(
    name: str, olds: dict[str, Any], news: dict[str, Any]
) -> Iterator[str]:
    for key in dict.fromkeys((*olds, *news)):
        if key not in olds or key not in news or olds[key] != news[key]:
            old, new = (_value(values, key) for values in (olds, news))
            yield f"{name} differs: {key} is {new}, was {old}"


def _value(values: dict[str, Any], key: str) -> str:
    return json.dumps(values[key]) if key in values else "not said"


def _token(token: int | None) -> str:
    return "none" if token is None else str(token)


def _tokens(count: int) -> str:
    return "1 token" if count == 1 else f"{count} tokens"


@contextmanager
def _failing_with_its_own_code() -> Iterator[None]:
    """An error ends with another exit code than an answer that differs."""
    try:
        yield
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    except Exception as error:
        if os.environ.get(DEBUG_VARIABLE):
            traceback.print_exc()
        is_ours = isinstance(error, JaxServerError)
        message = str(error) if is_ours else f"{type(error).__name__}: {error}"
        typer.echo(f"error: {' '.join(message.splitlines())}", err=True)
        raise typer.Exit(CANNOT_RUN) from None
