"""The port that hears about finished requests."""

import dataclasses
from typing import NamedTuple, Protocol

from jaxserver.ports.origin import UNKNOWN, Origin
from jaxserver.ports.types import Usage


class Arrival(NamedTuple):
    """Tokens that one dispatch brought.

    Attributes:
        seconds: From `generate` until they came.
        tokens: How many, at least 1.
    """

    seconds: float
    tokens: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RequestRecord:
    """What there is to say about one request once it has ended.

    Attributes:
        request_id: Counts from 0 within one engine; None where the engine did not
            take it.
        outcome: A finish reason, or the code of the error it failed with.
        queue_seconds: From `generate` until a slot was given; None if none was.
        first_token_seconds: From `generate` until the first token; None if none came.
        total_seconds: From `generate` until the end.
        arrivals: When tokens came, in order.
        origin: Who asked.
    """

    request_id: int | None
    outcome: str
    usage: Usage
    queue_seconds: float | None
    first_token_seconds: float | None
    total_seconds: float
    arrivals: tuple[Arrival, ...] = ()
    origin: Origin = UNKNOWN

    @property
    def prefill_seconds(self) -> float | None:
        """From the slot until the first token; None if either is missing."""
        if self.queue_seconds is None or self.first_token_seconds is None:
            return None
        return self.first_token_seconds - self.queue_seconds

    @property
    def decode_seconds(self) -> float | None:
        """From the first token until the end; None if none came."""
        if self.first_token_seconds is None:
            return None
        return self.total_seconds - self.first_token_seconds


class Telemetry(Protocol):
    """Called from the engine's and the callers' threads; neither blocks nor raises."""

    def request_finished(self, record: RequestRecord) -> None: ...

    def close(self) -> None:
        """Hands over what it still holds; may be repeated."""
        ...
