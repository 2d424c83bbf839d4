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
        slots: Requests that can run at once; 0 before that is known.
        queued_tokens: Of the prompts that wait for a slot.
        pages_total: Pages of the cache.
        pages_used: Those that running requests hold.
        pages_cached: Those that the prefix tree holds, some of them in use as well.
        prefix_hits: Admissions that found a part of their prompt in the prefix tree.
        preemptions: Requests that had to give up their slot and begin again.
        drafted_tokens: Tokens that were guessed and run ahead of being chosen.
        accepted_tokens: Those of them that were chosen.
        failed_dispatches: Steps that failed on the devices.
        unsound_rows: Answers that failed since their logits were not numbers.
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
    slots: int = 0
    queued_tokens: int = 0
    pages_total: int = 0
    pages_used: int = 0
    pages_cached: int = 0
    prefix_hits: int = 0
    preemptions: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    failed_dispatches: int = 0
    unsound_rows: int = 0


class ServerStatus(Protocol):
    """Says how a server is doing, without waiting unless it says so."""

    @property
    def model_name(self) -> str:
        """Name under which the model is served."""
        ...

    def snapshot(self) -> StatusSnapshot: ...

    def fingerprint(self) -> str | None:
        """The short form of all that answers depend on besides their requests.

        Waits until that is known, and is None where it cannot be.

        Raises:
            NotReady: The model is not there yet.
        """
        ...

    def is_ready(self) -> bool:
        """Requests are taken."""
        ...

    def is_alive(self) -> bool:
        """The engine, once started, still runs."""
        ...
