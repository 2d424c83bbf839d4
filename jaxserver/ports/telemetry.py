"""The port that hears about finished requests."""

import dataclasses
from typing import Protocol

from jaxserver.ports.types import Usage


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RequestRecord:
    """What there is to say about one request once it has ended.

    Attributes:
        request_id: Counts from 0 within one engine.
        outcome: A finish reason, or the code of the error it failed with.
        queue_seconds: From `generate` until a slot was given; None if none was.
        first_token_seconds: From `generate` until the first token; None if none came.
        total_seconds: From `generate` until the end.
    """

    request_id: int
    outcome: str
    usage: Usage
    queue_seconds: float | None
    first_token_seconds: float | None
    total_seconds: float


class Telemetry(Protocol):
    """Called from the engine's threads; must neither block nor raise."""

    def request_finished(self, record: RequestRecord) -> None: ...
