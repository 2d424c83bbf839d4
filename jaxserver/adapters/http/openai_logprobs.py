"""Writes log-probabilities in OpenAI's two forms."""

import codecs
import math
from collections.abc import Sequence
from typing import Any

from jaxserver.adapters.http.openai_answers import (
    ChatLogprobs,
    ChatToken,
    TextLogprobs,
    TopToken,
)
from jaxserver.ports.types import TokenLogprob

IMPOSSIBLE = -9999.0
"""Stands for minus infinity, which JSON cannot say."""


def chat_logprobs(entries: Sequence[TokenLogprob] | None) -> ChatLogprobs | None:
    if entries is None:
        return None
    content = [
        ChatToken(
            **_fields(entry), top_logprobs=[TopToken(**_fields(e)) for e in entry.top]
        )
        for entry in entries
    ]
    return ChatLogprobs(content=content, refusal=None)


class TextLogprobsWriter:
    """Counts on from piece to piece where in the answer's text a token begins."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._offset = 0

    def write(self, entries: Sequence[TokenLogprob] | None) -> TextLogprobs | None:
        if entries is None:
            return None
        return TextLogprobs(
            tokens=[_text(entry) for entry in entries],
            token_logprobs=[_finite(entry.logprob) for entry in entries],
            top_logprobs=[_by_text(entry) for entry in entries],
            text_offset=[self._next_offset(entry) for entry in entries],
        )

    def _next_offset(self, entry: TokenLogprob) -> int:
        offset = self._offset
        self._offset += len(self._decoder.decode(entry.token_bytes))
        return offset


def _by_text(entry: TokenLogprob) -> dict[str, float]:
    """The likeliest tokens and the drawn one; equal texts are told apart by id."""
    table: dict[str, float] = {}
    for token in {e.token_id: e for e in (*entry.top, entry)}.values():
        text = _text(token)
        name = f"token_id:{token.token_id}" if text in table else text
        table[name] = _finite(token.logprob)
    return table


def _fields(entry: TokenLogprob) -> dict[str, Any]:
    return {
        "token": _text(entry),
        "logprob": _finite(entry.logprob),
        "bytes": list(entry.token_bytes),
    }


def _text(entry: TokenLogprob) -> str:
    return entry.token_bytes.decode(errors="replace")


def _finite(logprob: float) -> float:
    return logprob if math.isfinite(logprob) else IMPOSSIBLE
