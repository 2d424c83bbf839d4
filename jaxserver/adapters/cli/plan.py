"""`jaxserver plan`: the memory a model will need, before anything is loaded."""

import dataclasses
import json
from typing import Annotated

import typer
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from jaxserver.adapters.cli.program import Program
from jaxserver.adapters.cli.setting_options import OUTPUT
from jaxserver.ports.config import ServerConfig
from jaxserver.ports.memory import MemoryPlan


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PlanFlags:
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print JSON, in bytes.", rich_help_panel=OUTPUT),
    ] = False


def plan(program: Program, config: ServerConfig, flags: PlanFlags) -> None:
    """Count the memory that weights and cache take on each device.

    From shapes alone, before anything is loaded.
    """
    counted = program.plan(config)
    if flags.as_json:
        total = {"bytes_per_device": counted.bytes_per_device}
        typer.echo(json.dumps(dataclasses.asdict(counted) | total))
    else:
        Console().print(_table(counted))


def _table(counted: MemoryPlan) -> Table:
    table = Table(title=Text(f"Memory of {counted.model}"), show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_row("parameters", f"{counted.num_parameters:,} in {counted.dtype}")
    table.add_row("devices", str(counted.num_devices))
    rows = f"{counted.slots} x {counted.max_length:,} tokens"
    table.add_row("requests at once", rows, end_section=True)
    table.add_row("weights per device", decimal(counted.weights_bytes_per_device))
    table.add_row("cache per device", decimal(counted.cache_bytes_per_device))
    if counted.working_bytes_per_device:
        working = decimal(counted.working_bytes_per_device)
        table.add_row("working memory per device", working)
    table.add_row("together per device", decimal(counted.bytes_per_device))
    if counted.replicated:
        table.add_section()
        table.add_row("held more than once", Text("\n".join(counted.replicated)))
    return table
