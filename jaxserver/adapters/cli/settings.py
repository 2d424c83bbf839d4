"""Settling the configuration: the command line, then the environment, then a file."""

import dataclasses
import difflib
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import NoneType
from typing import Any, get_args

from jaxserver.ports.config import ServerConfig
from jaxserver.ports.errors import InvalidConfig

PREFIX = "JAXSERVER_"
CONFIG_VARIABLE = f"{PREFIX}CONFIG"
DEBUG_VARIABLE = f"{PREFIX}DEBUG"
OTHER_VARIABLES = frozenset({f"{PREFIX}CACHE", CONFIG_VARIABLE, DEBUG_VARIABLE})
FILE = "the configuration file"
TRUTH = {"true": True, "yes": True, "on": True, "1": True} | {
    "false": False,
    "no": False,
    "off": False,
    "0": False,
}


@dataclasses.dataclass(frozen=True, slots=True)
class Kind:
    """The type of a key's values, and whether it may be None."""

    type: Any
    optional: bool


def kind_of(annotation: Any) -> Kind:
    members = get_args(annotation)
    if NoneType not in members:
        return Kind(annotation, optional=False)
    (kind,) = (member for member in members if member is not NoneType)
    return Kind(kind, optional=True)


KINDS = {field.name: kind_of(field.type) for field in dataclasses.fields(ServerConfig)}
READERS: dict[Any, Callable[[str], Any]] = {
    str: str,
    int: int,
    float: float,
    bool: lambda text: TRUTH[text.strip().lower()],
    tuple[int, ...]: lambda text: tuple(int(part) for part in text.split(",")),
    tuple[str, ...]: lambda text: tuple(part.strip() for part in text.split(",")),
}


def settle(
    flags: Mapping[str, Any], environment: Mapping[str, str], file: Mapping[str, Any]
) -> ServerConfig:
    """The configuration, each key from the first place that names it.

    Args:
        flags: What the command line said, by key; None where it was silent.
        environment: All variables.
        file: What the file said.

    Raises:
        InvalidConfig: The file has an unknown key, or a value does not fit its key; it
            says where the value came from.
    """
    _refuse_unknown_keys(file)
    found: dict[str, tuple[Any, str]] = {}
    for key, kind in KINDS.items():
        if flags.get(key) is not None:
            found[key] = value_of(flags[key], kind), flag(key)
        elif variable(key) in environment:
            found[key] = value_of(environment[variable(key)], kind), variable(key)
        elif key in file:
            is_none = kind.optional and file[key] == "none"
            found[key] = None if is_none else file[key], FILE
    try:
        return ServerConfig(**{key: value for key, (value, _) in found.items()})
    except InvalidConfig as error:
        _, origin = found.get(error.key, (None, "its default"))
        got = f"{error.got} from {origin}"
        raise InvalidConfig(error.key, got, error.allowed) from None


def value_of(written: str | bool, kind: Kind) -> Any:
    """What a text stands for; a text that stands for nothing stays to be refused."""
    if isinstance(written, bool):
        return written
    if kind.optional and written.lower() == "none":
        return None
    try:
        return READERS[kind.type](written)
    except (ValueError, KeyError):
        return written


def flag(key: str) -> str:
    return f"--{key.replace('_', '-')}"


def variable(key: str) -> str:
    return f"{PREFIX}{key.upper()}"


def read_file(path: Path) -> dict[str, Any]:
    """The keys and values of a TOML file.

    Raises:
        InvalidConfig: It cannot be read or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
    except ValueError as error:  # neither UTF-8 nor TOML
        reason = str(error)
    raise InvalidConfig("config", f"{path} ({reason})", "a TOML file that can be read")


def warnings(environment: Mapping[str, str]) -> list[str]:
    """A line for every variable that looks like one of ours and is none."""
    known = {variable(key): key for key in KINDS}
    unknown = {name for name in environment if name.startswith(PREFIX)}
    lines = []
    for name in sorted(unknown - known.keys() - OTHER_VARIABLES):
        near = _near(name.removeprefix(PREFIX).lower())
        hint = f" (did you mean {variable(near)}?)" if near else ""
        lines.append(f"{name} is not a setting{hint}")
    return lines


def _refuse_unknown_keys(file: Mapping[str, Any]) -> None:
    for key in sorted(file.keys() - KINDS.keys()):
        near = _near(key)
        hint = f" (did you mean {near}?)" if near else ""
        got = f"an unknown key in {FILE}{hint}"
        raise InvalidConfig(key, got, f"one of {', '.join(sorted(KINDS))}")


def _near(name: str) -> str | None:
    return next(iter(difflib.get_close_matches(name, KINDS, n=1)), None)
