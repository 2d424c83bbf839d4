"""The options that settings have on the command line, made from `ServerConfig`."""

import dataclasses
import inspect
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer

from jaxserver.adapters.cli import settings
from jaxserver.ports.config import ServerConfig

MODEL, ANSWER, SPEED = "Model", "Answer", "Speed and memory"
SERVER, PROMPTS, OUTPUT = "Server", "Prompts", "Output"
PANELS = {
    MODEL: (
        *("model", "backend", "dtype", "quantize", "kernels", "numerics", "max_length"),
    ),
    ANSWER: ("max_new_tokens", "temperature", "top_p", "top_k"),
    SPEED: (
        *("slots", "batch_size", "max_stream_tokens", "pre_compile"),
        *("mesh_axes_names", "mesh_axes_shape"),
    ),
    SERVER: (
        *("host", "port", "api_key", "max_queue", "logging"),
        "stream_tokens_for_gradio",
    ),
    PROMPTS: (
        *("use_prefix_tokenizer", "instruct_format"),
        *("prompt_prefix_chat", "prompt_postfix_chat"),
    ),
}
METAVARS: dict[Any, str] = {
    int: "<int>",
    float: "<float>",
    str: "<str>",
    tuple[int, ...]: "<int,int,int>",
    tuple[str, ...]: "<a,b,c>",
}
SWITCHES = [key for key, kind in settings.KINDS.items() if kind.type is bool]
"""Keys with two flags, of which help shows one: both do not fit into 80 columns."""

ConfigFile: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="<file>",
        help="A TOML file of settings. \\[env: JAXSERVER_CONFIG]",
        rich_help_panel=MODEL,
    ),
]


def setting_options() -> Iterator[inspect.Parameter]:
    """The file's option and one for each key, in the order of the panels.

    Values are texts, or None where not given; what they stand for is settled later.
    """
    yield option("config_file", ConfigFile, None)
    fields = {field.name: field for field in dataclasses.fields(ServerConfig)}
    panels = {key: panel for panel, keys in PANELS.items() for key in keys}
    for key in sorted(fields, key=[*panels, *fields].index):
        name, panel = settings.flag(key), panels.get(key, SERVER)
        if key in SWITCHES:
            off = Annotated[bool, typer.Option(f"--no{name[1:]}", hidden=True)]
            yield option(f"no_{key}", off, False)
            on = Annotated[bool, _setting(fields[key], panel, name)]
            yield option(key, on, False)
        else:
            names = [name, "-m"] if key == "model" else [name]
            text = Annotated[str | None, _setting(fields[key], panel, *names)]
            yield option(key, text, None)


def _setting(field: "dataclasses.Field[Any]", panel: str, *names: str) -> Any:
    return typer.Option(
        *names,
        help=_help(field),
        metavar=METAVARS.get(settings.KINDS[field.name].type),
        rich_help_panel=panel,
        show_default=False,
    )


def _help(field: "dataclasses.Field[Any]") -> str:
    """The key's own words, its choices and its default."""
    allowed, default = field.metadata["rule"].allowed, field.default
    parts = [field.metadata["help"]]
    if allowed.startswith("one of "):
        parts.append(f"One of {allowed.removeprefix('one of ')}.")
    if isinstance(default, tuple):
        default = ",".join(map(str, default))
    if isinstance(default, bool):
        default = str(default).lower()
    if default not in (None, ""):
        parts.append(f"\\[default: {default}]")  # escaped, for it is no markup
    return " ".join(parts)


def option(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, kind, annotation=annotation, default=default)


def settle_values(values: dict[str, Any]) -> ServerConfig:
    variables = dict(os.environ)
    for line in settings.warnings(variables):
        warn(line)
    path = values["config_file"] or variables.get(settings.CONFIG_VARIABLE)
    file = settings.read_file(Path(path)) if path else {}
    switches = {key: _switch(key, values) for key in SWITCHES}
    return settings.settle(values | switches, variables, file)


def _switch(key: str, values: dict[str, Any]) -> bool | None:
    on, off = values[key], values[f"no_{key}"]
    if on and off:
        name = settings.flag(key)
        raise typer.BadParameter(f"goes with no --no{name[1:]}", param_hint=name)
    return True if on else (False if off else None)


def warn(message: str) -> None:
    typer.echo(f"warning: {message}", err=True)
