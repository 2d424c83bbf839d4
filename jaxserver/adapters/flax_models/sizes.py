"""How long a Flax model's rows are, and the grid that its chunks lie on."""

from typing import Any, NamedTuple

CHUNK = 128
STEP = 32
"""Rows that may not be longer than a table of positions are cut to a multiple of it."""


class Sizes(NamedTuple):
    """Lengths in tokens.

    Attributes:
        max_len: Longest sequence.
        capacity: Places in a row of the cache, a multiple of `chunk`.
        chunk: Padded length of a prefill chunk.
    """

    max_len: int
    capacity: int
    chunk: int
    vocab_size: int


def sizes_of(wanted: int, positions: int | None, vocab_size: int) -> Sizes:
    """The longest rows that fit.

    Args:
        wanted: The `max_length` that was asked for.
        positions: How many positions the model has learned; None where it can go on.
        vocab_size: Width of the logits.
    """
    if positions is None or -(-wanted // CHUNK) * CHUNK <= positions:
        chunk = min(CHUNK, wanted)
        return Sizes(wanted, -(-wanted // chunk) * chunk, chunk, vocab_size)
    longest = min(wanted, positions)
    if longest <= CHUNK:
        return Sizes(longest, longest, longest, vocab_size)
    cut = longest // STEP * STEP
    chunk = next(size for size in (CHUNK, CHUNK // 2, STEP) if cut % size == 0)
    return Sizes(cut, cut, chunk, vocab_size)


def first_position(config: Any) -> int:
    """Roberta's positions begin behind its padding token."""
    first: int = config.pad_token_id + 1 if "roberta" in config.model_type else 0
    return first
