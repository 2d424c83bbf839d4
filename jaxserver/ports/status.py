"""The port that says how a server is doing."""

import dataclasses
import enum
from collections.abc import Mapping
from typing import Protocol


class ServerState(enum.Enum):
    """Where a server is in its life."""

    LOADING = "loading"
    COMPILING = "compiling"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StatusSnapshot:
    """A server at one moment.

    Attributes:
        model: The model's name, as `ServerStatus.model_name` gives it.
        config: Every key of the configuration; secrets as true or false.
        devices: The accelerators or processors in use, in words.
        cores: Processor cores the process may use.
        memory: Bytes: `resident` of the process, `weights` and `cache` on the devices.
        requests_served: Answers finished, of whatever route.
        prompts_served: Prompts admitted to a slot.
        compiles_after_ready: Executables built while serving; more than 0 is a fault.
    """

    model: str
    config: Mapping[str, object]
    state: ServerState
    devices: tuple[str, ...]
    cores: int
    memory: Mapping[str, int]
    uptime_seconds: float
    requests_served: int
    prompts_served: int
    tokens_generated: int
    slots_in_use: int
    queue_length: int
    compiles_after_ready: int


class ServerStatus(Protocol):
    """Says how a server is doing, without waiting for anything."""

    @property
    def model_name(self) -> str:
        """Name under which the model is served."""
        ...

    def snapshot(self) -> StatusSnapshot: ...

    def is_ready(self) -> bool:
        """Requests are taken."""
        ...

    def is_alive(self) -> bool:
        """The engine, once started, still runs."""
        ...
