"""Turning functions of dataclasses into commands with options."""

import dataclasses
import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, TypeAlias, get_type_hints

import typer

from jaxserver.adapters.cli.program import Program
from jaxserver.adapters.cli.setting_options import (
    ANSWER,
    OUTPUT,
    option,
    setting_options,
    settle_values,
)
from jaxserver.adapters.cli.settings import DEBUG_VARIABLE
from jaxserver.ports.errors import JaxServerError

INTERRUPTED = 130  # the exit code of a program ended by Ctrl-C
EPILOG = (
    "Every setting is also an environment variable (JAXSERVER_MAX_LENGTH for "
    "--max-length) and a key of the --config file (max_length = 4096). The command "
    "line wins, then the environment, then the file. A switch is turned off as in "
    "--no-pre-compile. JAXSERVER_DEBUG=1 shows where an error came from."
)
System: TypeAlias = Annotated[
    str | None, typer.Option(help="The system prompt.", rich_help_panel=ANSWER)
]
Quiet: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--quiet", "-q", help="No progress bars, no counts.", rich_help_panel=OUTPUT
    ),
]
Group: TypeAlias = Any
"""A dataclass whose fields are annotated with `typer.Option` or `typer.Argument`."""


def command(
    run: Callable[..., None], program: Program, *groups: type[Group]
) -> Callable[..., None]:
    """`run(program, *groups)` with the groups' fields as options."""

    def call(**values: Any) -> None:
        with _errors_in_one_line():
            run(program, *(_fill(group, values) for group in groups))

    return _described(call, run, [*_options(groups)])


def settled(
    run: Callable[..., None], program: Program, *groups: type[Group]
) -> Callable[..., None]:
    """`run(program, config, *groups)`, with every setting as an option too."""

    def call(**values: Any) -> None:
        with _errors_in_one_line():
            config = settle_values(values)
            run(program, config, *(_fill(group, values) for group in groups))

    return _described(call, run, [*_options(groups), *setting_options()])


@contextmanager
def _errors_in_one_line() -> Iterator[None]:
    try:
        yield
    except JaxServerError as error:
        if os.environ.get(DEBUG_VARIABLE):
            raise
        message = " ".join(str(error).splitlines())
        typer.echo(f"error: {message}", err=True)
        raise typer.Exit(1) from None


def _described(
    call: Callable[..., None],
    run: Callable[..., None],
    parameters: list[inspect.Parameter],
) -> Callable[..., None]:
    signature = inspect.Signature(parameters)
    call.__signature__ = signature  # type: ignore[attr-defined]  # typer reads it
    call.__doc__ = run.__doc__
    return call


def _fill(group: type[Group], values: dict[str, Any]) -> Group:
    return group(**{field.name: values[field.name] for field in _fields(group)})


def _fields(group: type[Group]) -> "tuple[dataclasses.Field[Any], ...]":
    return dataclasses.fields(group)


def _options(groups: tuple[type[Group], ...]) -> Iterator[inspect.Parameter]:
    for group in groups:
        hints = get_type_hints(group, include_extras=True)
        for field in _fields(group):
            is_required = field.default is dataclasses.MISSING
            default = inspect.Parameter.empty if is_required else field.default
            yield option(field.name, hints[field.name], default)
