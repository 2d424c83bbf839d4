"""What each token of a vocabulary adds to the text, as bytes."""

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import tokenizers

from jaxserver.ports.errors import UnsupportedModel

BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
SUPPORTED = "byte-level, sentencepiece (Metaspace or Replace) and WordPiece decoders"
MAX_IDS = 1 << 22
SUPPORTED_IDS = f"ids below {MAX_IDS}"
# What WordPiece's clean-up does to a token and the space before it.
CLEAN_UP = {
    " .": ".",
    " ?": "?",
    " !": "!",
    " ,": ",",
    " n't": "n't",
    " 'm": "'m",
    " 's": "'s",
    " 've": "'ve",
    " 're": "'re",
}


def _byte_of_character() -> dict[str, int]:
    """The characters under which byte-level vocabularies write bytes (GPT-2).

    Printable bytes stand for themselves, the others for 256, 257 and so on.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    written = {chr(byte): byte for byte in printable}
    return written | {chr(256 + i): byte for i, byte in enumerate(others)}


BYTE_OF_CHARACTER = _byte_of_character()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PieceReader:
    """How a vocabulary writes text down, as its decoder says.

    Attributes:
        replacements: Strings that stand for others, in order.
        is_byte_level: Every character stands for a byte.
        has_byte_tokens: `<0xNN>` is a byte.
        word_prefix: What tokens that go on within a word begin with; None where tokens
            carry their spaces.
        cleans_up: Punctuation takes no space before it.
        strips_leading_space: The text drops one space at its beginning.
    """

    replacements: tuple[tuple[str, str], ...] = ()
    is_byte_level: bool = False
    has_byte_tokens: bool = False
    word_prefix: str | None = None
    cleans_up: bool = False
    strips_leading_space: bool = False

    def read(self, token: str) -> bytes:
        byte = BYTE_TOKEN.fullmatch(token) if self.has_byte_tokens else None
        if byte is not None:
            return bytes.fromhex(byte[1])
        for old, new in self.replacements:
            token = token.replace(old, new)
        if self.word_prefix is not None:
            token = self._with_space(token, self.word_prefix)
        return _bytes_of_characters(token) if self.is_byte_level else token.encode()

    def read_added(self, token: str) -> bytes:
        """A token that was added to the vocabulary, which is written as it is."""
        return token.encode() if self.is_byte_level else self.read(token)

    def _with_space(self, token: str, word_prefix: str) -> str:
        if token.startswith(word_prefix):
            return token.removeprefix(word_prefix)
        spaced = f" {token}"
        return CLEAN_UP.get(spaced, spaced) if self.cleans_up else spaced


def piece_reader(encoder: tokenizers.Tokenizer) -> PieceReader:
    """Reads a decoder's settings.

    Raises:
        UnsupportedModel: A token's bytes depend on its neighbours, or are unknown.
    """
    if encoder.decoder is None:
        raise UnsupportedModel("a tokenizer without a decoder", SUPPORTED)
    reader = PieceReader()
    for step in _steps(json.loads(encoder.decoder.__getstate__())):
        reader = dataclasses.replace(reader, **_fields(step, reader))
    return reader


def piece_table(
    encoder: tokenizers.Tokenizer, reader: PieceReader, unused: frozenset[int]
) -> tuple[bytes, ...]:
    """The bytes of every id; none for special, unused and missing ones.

    Raises:
        UnsupportedModel: An id is out of all proportion.
    """
    vocabulary = encoder.get_vocab(with_added_tokens=True)
    added = encoder.get_added_tokens_decoder()
    size = max(vocabulary.values(), default=-1) + 1
    if size > MAX_IDS:
        raise UnsupportedModel(f"a vocabulary with the id {size - 1}", SUPPORTED_IDS)
    table = [b""] * size
    for text, token in vocabulary.items():
        if token in unused or (token in added and added[token].special):
            continue
        table[token] = reader.read_added(text) if token in added else reader.read(text)
    return tuple(table)


def _bytes_of_characters(token: str) -> bytes:
    try:
        return bytes([BYTE_OF_CHARACTER[character] for character in token])
    except KeyError:
        return token.encode()


def _steps(decoder: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    if decoder["type"] != "Sequence":
        yield decoder
        return
    for part in decoder["decoders"]:
        yield from _steps(part)


def _fields(step: Mapping[str, Any], reader: PieceReader) -> dict[str, Any]:
    """The fields of a `PieceReader` that one step of a decoder sets."""
    match step:
        case {"type": "ByteLevel"}:
            return {"is_byte_level": True}
        case {"type": "ByteFallback"}:
            return {"has_byte_tokens": True}
        case {"type": "Fuse"}:
            return {}
        case {"type": "Replace", "pattern": {"String": old}, "content": new}:
            return {"replacements": (*reader.replacements, (old, new))}
        case {"type": "Strip", "content": " ", "start": 1, "stop": 0}:
            return {"strips_leading_space": True}
        case {"type": "Metaspace", "replacement": old, "prepend_scheme": scheme}:
            return {
                "replacements": (*reader.replacements, (old, " ")),
                "strips_leading_space": scheme != "never",
            }
        case {"type": "WordPiece", "prefix": prefix, "cleanup": cleans_up}:
            return {
                "word_prefix": prefix,
                "cleans_up": cleans_up,
                "strips_leading_space": True,
            }
    raise UnsupportedModel(f"a tokenizer whose decoder is {dict(step)}", SUPPORTED)
