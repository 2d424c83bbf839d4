"""Turns a growing answer's bytes into text that never has to be taken back."""

import codecs
import dataclasses
from collections.abc import Sequence
from typing import NamedTuple


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TextState:
    """What of an answer has not been given out yet.

    Attributes:
        pending: Bytes of a character that is not complete.
        held: Text that could be the beginning of a stop string.
        strips_space: The next byte is the answer's first, and a space is dropped there.
    """

    pending: bytes = b""
    held: str = ""
    strips_space: bool = False


class Piece(NamedTuple):
    """Text that is ready, and whether it ends at a stop string."""

    text: str
    is_stopped: bool
    state: TextState


def add(state: TextState, token: bytes, stops: Sequence[str]) -> Piece:
    """Adds one token's bytes; text before the first stop string in it is ready.

    Of several stop strings the one that is complete first counts, of those that end
    together the longest: then it does not matter where one token ends and the next
    begins.
    """
    if state.strips_space and token:
        token = token.removeprefix(b" ")
        state = dataclasses.replace(state, strips_space=False)
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    decoded = decoder.decode(state.pending + token)
    pending = decoder.getstate()[0]
    text = state.held + decoded
    cut = _first_stop(text, stops)
    if cut is not None:
        return Piece(text[:cut], True, TextState())
    ready = len(text) - _could_begin(text, stops)
    return Piece(
        text[:ready],
        False,
        dataclasses.replace(state, pending=pending, held=text[ready:]),
    )


def finish(state: TextState, stops: Sequence[str]) -> str:
    """What is left when no token follows; an unfinished character is U+FFFD."""
    text = state.held + state.pending.decode(errors="replace")
    return text[: _first_stop(text, stops)]


def _first_stop(text: str, stops: Sequence[str]) -> int | None:
    """Where the stop string begins that is complete first; None where none is."""
    found = [(at + len(stop), at) for stop in stops if (at := text.find(stop)) >= 0]
    return min(found)[1] if found else None


def _could_begin(text: str, stops: Sequence[str]) -> int:
    """Length of the longest end of the text that begins a stop string."""
    longest = max((len(stop) - 1 for stop in stops), default=0)
    for length in range(min(longest, len(text)), 0, -1):
        if any(stop.startswith(text[-length:]) for stop in stops):
            return length
    return 0
