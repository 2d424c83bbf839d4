"""Builds the command line from the functions of a program."""

import importlib.metadata
import io
import sys
from typing import Annotated

import typer

from jaxserver.adapters.cli.chat import ChatFlags, chat
from jaxserver.adapters.cli.generate import GenerateFlags, generate
from jaxserver.adapters.cli.options import EPILOG, command, settled
from jaxserver.adapters.cli.plan import PlanFlags, plan
from jaxserver.adapters.cli.program import Program
from jaxserver.adapters.cli.pull import PullFlags, pull
from jaxserver.adapters.cli.replay import ReplayFlags, replay
from jaxserver.adapters.cli.sampling import SamplingFlags
from jaxserver.adapters.cli.serve import ServeFlags, serve


def build(program: Program) -> typer.Typer:
    """The application, to be called with the arguments of the process."""
    app = typer.Typer(
        add_completion=False,
        context_settings={"help_option_names": ["--help", "-h"]},
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
    )
    app.callback()(_root)
    for run, groups in (
        (serve, (ServeFlags,)),
        (generate, (GenerateFlags, SamplingFlags)),
        (chat, (ChatFlags, SamplingFlags)),
        (plan, (PlanFlags,)),
    ):
        app.command(run.__name__, epilog=EPILOG)(settled(run, program, *groups))
    app.command("pull")(command(pull, program, PullFlags))
    app.command("replay")(command(replay, program, ReplayFlags))
    return app


def _show_version(is_wanted: bool) -> None:
    if is_wanted:
        typer.echo(f"jaxserver {importlib.metadata.version('jaxserver')}")
        raise typer.Exit


def _root(
    _version: Annotated[
        bool,
        typer.Option(
            "--version",
            help="Print the version.",
            callback=_show_version,
            is_eager=True,
        ),
    ] = False,
) -> None:
    """Language models written in JAX: served over HTTP, or answering right here."""
    for stream in (sys.stdin, sys.stdout):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
