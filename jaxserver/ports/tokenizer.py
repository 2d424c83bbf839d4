"""The port between text and token ids."""

from collections.abc import Sequence
from typing import Protocol


class Tokenizer(Protocol):
    """Turns text into token ids and back; safe to use from several threads.

    Every implementation passes `tests/contract/test_tokenizer.py`.

    Attributes:
        vocab_size: Ids are below this.
        bos_id: The beginning-of-text token, or None.
        eos_ids: The tokens that end an answer.
        strips_leading_space: Decoding drops one space at the beginning.
    """

    @property
    def vocab_size(self) -> int: ...

    @property
    def bos_id(self) -> int | None: ...

    @property
    def eos_ids(self) -> frozenset[int]: ...

    @property
    def strips_leading_space(self) -> bool: ...

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids; special tokens written in the text are recognised.

        With `add_special_tokens` those of the tokenizer's settings are added, but never
        a second beginning-of-text token.
        """
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text, special tokens skipped, incomplete bytes as U+FFFD.

        Equals the ids' `token_bytes` joined, less the leading space where
        `strips_leading_space`, decoded as UTF-8 with replacement.
        """
        ...

    def token_bytes(self, token: int) -> bytes:
        """What one token adds to the text; empty for special tokens."""
        ...
