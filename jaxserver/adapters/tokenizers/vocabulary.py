"""The tokenizer's keys in the metadata of a GGUF file."""

import dataclasses
import enum
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from jaxserver.adapters.tokenizers.ends import MAX_TOKEN_CHARACTERS
from jaxserver.ports.errors import BrokenCheckpoint

# Tokens that end a turn. One that the model's own template writes ends an answer too,
# since many files name their end of text alone.
TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<end_of_turn>")
END_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")

Value = TypeVar("Value", str, int, float)


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
        empty = cls(metadata=metadata, file=file, tokens=(), types=())
        tokens = empty.values("tokens", str)
        vocabulary = dataclasses.replace(empty, tokens=tokens)
        different = len(set(tokens))
        if not tokens or different != len(tokens):
            found = f"{len(tokens)}, {different} of them different"
            raise vocabulary.broken("tokens", "tokens, each of them once", found)
        longest = max(map(len, tokens))
        if longest > MAX_TOKEN_CHARACTERS:
            expected = f"tokens of at most {MAX_TOKEN_CHARACTERS} characters"
            raise vocabulary.broken("tokens", expected, f"one of {longest}")
        if "tokenizer.ggml.token_type" not in metadata:
            normal = [TokenType.NORMAL] * len(tokens)
            return dataclasses.replace(vocabulary, types=normal)
        types = vocabulary.values("token_type", int)
        vocabulary.check_length("token_type", types)
        return dataclasses.replace(vocabulary, types=types)

    def ids(self) -> dict[str, int]:
        return {text: token for token, text in enumerate(self.tokens)}

    def of_type(self, *types: TokenType) -> list[int]:
        return [token for token, kind in enumerate(self.types) if kind in types]

    def flag(self, key: str, *, default: bool) -> bool:
        value = self.metadata.get(f"tokenizer.ggml.{key}", default)
        if not isinstance(value, bool):
            raise self.broken(key, "true or false", reprlib.repr(value))
        return value

    def values(self, key: str, kind: type[Value]) -> Sequence[Value]:
        """A list whose entries are all of one kind."""
        values = self.metadata.get(f"tokenizer.ggml.{key}")
        if not isinstance(values, list) or not all(type(v) is kind for v in values):
            expected = f"a list of type {kind.__name__}"
            raise self.broken(key, expected, reprlib.repr(values))
        return values

    def check_length(self, key: str, values: Sequence[Any]) -> None:
        if len(values) != len(self.tokens):
            expected = f"{len(self.tokens)} entries, one a token"
            raise self.broken(key, expected, str(len(values)))

    def token_id(self, key: str) -> int | None:
        token = self.metadata.get(f"tokenizer.ggml.{key}")
        if token is None:
            return None
        if type(token) is not int or not 0 <= token < len(self.tokens):
            expected = f"an id below {len(self.tokens)}"
            raise self.broken(key, expected, reprlib.repr(token))
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
