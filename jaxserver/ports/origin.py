"""Where a request comes from: what logs and traces know it by."""

import contextvars
from typing import NamedTuple


class Origin(NamedTuple):
    """Who asked; it never changes an answer.

    Attributes:
        request_id: What its client, or else the adapter, calls it.
        traceparent: The client's span that it belongs to, in the form of W3C's header.
    """

    request_id: str | None = None
    traceparent: str | None = None


UNKNOWN = Origin()
ORIGIN: contextvars.ContextVar[Origin] = contextvars.ContextVar(
    "jaxserver_origin", default=UNKNOWN
)
"""Put by an adapter around whatever is done for one request."""
