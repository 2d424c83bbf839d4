"""The tokenizer port over a fast encoder and a table of every token's bytes."""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Sequence

import tokenizers

from jaxserver.adapters.tokenizers.pieces import piece_reader, piece_table
from jaxserver.ports.errors import InvalidRequest, UnsupportedModel

RARE_TEXT = "a \u4dff \U0001f642 \u0780 \U0010fffd"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PieceTokenizer:
    """Encodes with `tokenizers`, whose encoder is never changed, and decodes by table.

    Attributes:
        pieces: What each id adds to the text.
        adds_bos: The settings put a beginning-of-text token before a text.
    """

    encoder: tokenizers.Tokenizer = dataclasses.field(repr=False)
    pieces: tuple[bytes, ...] = dataclasses.field(repr=False)
    bos_id: int | None
    eos_ids: frozenset[int]
    strips_leading_space: bool
    adds_bos: bool

    @classmethod
    def of(
        cls,
        encoder: tokenizers.Tokenizer,
        *,
        bos_id: int | None,
        eos_ids: Iterable[int],
        unused: frozenset[int] = frozenset(),
    ) -> "PieceTokenizer":
        """Takes an encoder with its decoder set; `unused` ids stand for nothing.

        Raises:
            UnsupportedModel: The decoder is of an unknown kind, or there are texts that
                the encoder fails on.
        """
        encoder.no_truncation()
        encoder.no_padding()
        _try_out(encoder)
        reader = piece_reader(encoder)
        return cls(
            encoder=encoder,
            pieces=piece_table(encoder, reader, unused),
            bos_id=bos_id,
            eos_ids=frozenset(eos_ids),
            strips_leading_space=reader.strips_leading_space,
            adds_bos=bos_id is not None and encoder.encode("").ids[:1] == [bos_id],
        )

    @property
    def vocab_size(self) -> int:
        return len(self.pieces)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids; see the port.

        A byte for which the vocabulary has no token is left out, as the model's own
        tokenizer leaves it out; vocabularies trained on text lack some control codes.

        Raises:
            InvalidRequest: The text has half a surrogate pair, which no token is for.
        """
        try:
            encoding = self.encoder.encode(text, add_special_tokens=add_special_tokens)
        except TypeError:
            got = "half of a surrogate pair"
            raise InvalidRequest("text", got, "what UTF-8 can write") from None
        ids: list[int] = encoding.ids
        is_doubled = self.adds_bos and ids[:2] == [self.bos_id, self.bos_id]
        return ids[1:] if add_special_tokens and is_doubled else ids

    def decode(self, ids: Sequence[int]) -> str:
        text = b"".join(map(self.token_bytes, ids))
        if self.strips_leading_space:
            text = text.removeprefix(b" ")
        return text.decode(errors="replace")

    def digest(self) -> str:
        """SHA-256 of all that decides what ids a text has and what text ids have."""
        made = hashlib.sha256(self.encoder.to_str().encode())
        made.update(json.dumps([self.bos_id, sorted(self.eos_ids)]).encode())
        made.update("\n".join(map(bytes.hex, self.pieces)).encode())
        return made.hexdigest()

    def token_bytes(self, token: int) -> bytes:
        """What one token adds; nothing for an id that the vocabulary does not have."""
        return self.pieces[token] if 0 <= token < len(self.pieces) else b""


def _try_out(encoder: tokenizers.Tokenizer) -> None:
    """Encodes what hardly a vocabulary has tokens for.

    Raises:
        UnsupportedModel: That fails, as where the token for the unknown is missing.
    """
    try:
        encoder.encode(RARE_TEXT)
    except Exception as error:  # the library raises nothing narrower
        model = f"a tokenizer that fails on a text ({error})"
        raise UnsupportedModel(model, "those that take any text") from error
