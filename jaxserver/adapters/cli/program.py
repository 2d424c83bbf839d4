"""What the command line needs of the rest of the program, as functions."""

import dataclasses
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TypeAlias

from jaxserver.ports.config import ServerConfig
from jaxserver.ports.generator import Generator
from jaxserver.ports.memory import MemoryPlan
from jaxserver.ports.progress import Progress
from jaxserver.ports.prompt import PromptFormatter


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class OpenModel:
    """A model in this process, ready to answer."""

    generator: Generator
    formatter: PromptFormatter


OnReady: TypeAlias = Callable[[str], None]
"""Told the server's address."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """The functions behind the commands.

    Attributes:
        open: Loads the model into this process until the context is left.
        serve: Listens, loads, calls back once requests are taken, and returns when it
            was told to stop.
        pull: Fetches a model's files and says where they lie.
        plan: Counts memory from shapes alone.
    """

    open: Callable[[ServerConfig, Progress], AbstractContextManager[OpenModel]]
    serve: Callable[[ServerConfig, Progress, OnReady], None]
    pull: Callable[[str, Progress], str]
    plan: Callable[[ServerConfig], MemoryPlan]
