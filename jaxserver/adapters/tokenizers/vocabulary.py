"""The tokenizer's keys in the metadata of a GGUF file."""

import dataclasses
import enum
from collections.abc import Mapping, Sequence
from typing import Any

from jaxserver.ports.errors import BrokenCheckpoint

# Tokens that end a turn. One that the model's own template writes ends an answer too,
# since many files name their end of text alone.
TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<end_of_turn>")
END_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")


class TokenType(enum.IntEnum):
    """What a token is, as `tokenizer.ggml.token_type` counts."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """The keys `tokenizer.ggml.*` of one file, checked as they are read.

    Every method may raise `BrokenCheckpoint`, which names the key.

    Attributes:
        file: What errors call the file.
        types: A `TokenType` for every token.
    """

    metadata: Mapping[str, Any]
    file: str
    tokens: Sequence[str]
    types: Sequence[int]

    @classmethod
    def of(cls, metadata: Mapping[str, Any], file: str) -> "Vocabulary":
        tokens = metadata.get("tokenizer.ggml.tokens") or ()
        normal = [TokenType.NORMAL] * len(tokens)
        types = metadata.get("tokenizer.ggml.token_type", normal)
        vocabulary = cls(metadata=metadata, file=file, tokens=tokens, types=types)
        different = len(set(tokens))
        if not tokens or different != len(tokens):
            found = f"{len(tokens)}, {different} of them different"
            raise vocabulary.broken("tokens", "tokens, each of them once", found)
        vocabulary.check_length("token_type", types)
        return vocabulary

    def ids(self) -> dict[str, int]:
        return {text: token for token, text in enumerate(self.tokens)}

    def of_type(self, *types: TokenType) -> list[int]:
        return [token for token, kind in enumerate(self.types) if kind in types]

    def flag(self, key: str, *, default: bool) -> bool:
        return bool(self.metadata.get(f"tokenizer.ggml.{key}", default))

    def values(self, key: str) -> Sequence[Any]:
        values: Sequence[Any] | None = self.metadata.get(f"tokenizer.ggml.{key}")
        if values is None:
            raise self.broken(key, "a list", "nothing")
        return values

    def check_length(self, key: str, values: Sequence[Any]) -> None:
        if len(values) != len(self.tokens):
            expected = f"{len(self.tokens)} entries, one a token"
            raise self.broken(key, expected, str(len(values)))

    def token_id(self, key: str) -> int | None:
        token: int | None = self.metadata.get(f"tokenizer.ggml.{key}")
        if token is not None and not 0 <= token < len(self.tokens):
            raise self.broken(key, f"an id below {len(self.tokens)}", str(token))
        return token

    def eos_ids(self) -> set[int]:
        """Every token that the file, or its chat template, says ends an answer."""
        named = {self.token_id(key) for key in END_KEYS}
        template = str(self.metadata.get("tokenizer.chat_template", ""))
        turn_ends = {
            token
            for token in self.of_type(TokenType.CONTROL)
            if self.tokens[token] in TURN_ENDS and self.tokens[token] in template
        }
        return turn_ends | {token for token in named if token is not None}

    def broken(self, key: str, expected: str, found: str) -> BrokenCheckpoint:
        return BrokenCheckpoint(
            self.file,
            None,
            expected=f"tokenizer.ggml.{key} to be {expected}",
            found=found,
        )
