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

    def write(
        self, entries: Sequence[TokenLogprob] | None, first: bytes | None = None
    ) -> TextLogprobs | None:
        """Goes on with some tokens.

        Args:
            entries: What is said of each; None where nobody asked.
            first: What the text's first token adds to it, where it goes before those.
        """
        if entries is None:
            return None
        written = TextLogprobs(
            tokens=[], token_logprobs=[], top_logprobs=[], text_offset=[]
        )
        if first is not None:
            self._add(written, first, None, None)
        for entry in entries:
            logprob, top = _finite(entry.logprob), _by_text(entry)
            self._add(written, entry.token_bytes, logprob, top)
        return written

    def _add(
        self,
        written: TextLogprobs,
        token_bytes: bytes,
        logprob: float | None,
        top: dict[str, float] | None,
    ) -> None:
        written.tokens.append(token_bytes.decode(errors="replace"))
        written.token_logprobs.append(logprob)
        written.top_logprobs.append(top)
        written.text_offset.append(self._offset)
        self._offset += len(self._decoder.decode(token_bytes))


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
