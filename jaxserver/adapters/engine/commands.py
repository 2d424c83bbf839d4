"""What the engine's thread is told to do."""

from concurrent.futures import Future
from typing import NamedTuple, TypeAlias

from jaxserver.adapters.engine.dispatch import Dispatch
from jaxserver.adapters.engine.requests import KeptPages, TokenRequest
from jaxserver.core.prefix_tree import Tokens


class Submit(NamedTuple):
    request: TokenRequest


class Cancel(NamedTuple):
    """A request is not wanted any more.

    Attributes:
        kept: How many tokens of its answer count; None for all there are.
    """

    request_id: int
    kept: int | None


class Look(NamedTuple):
    """What the cache holds of a row's beginning is wanted on the host."""

    tokens: Tokens
    reply: "Future[KeptPages]"


class Bring(NamedTuple):
    """What another engine's cache held of some tokens."""

    tokens: Tokens
    kept: KeptPages


class Arrived(NamedTuple):
    """The outcome of a dispatch is there, or what went wrong with it is."""

    lane: int
    dispatch: Dispatch


class Stop(NamedTuple):
    pass


Command: TypeAlias = Submit | Cancel | Look | Bring | Arrived | Stop
