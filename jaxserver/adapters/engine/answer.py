"""One answer while it grows: its text, its counts, and when things happened to it."""

import dataclasses
from collections.abc import Sequence

from jaxserver.adapters.engine.receipts import ReceiptWriter
from jaxserver.adapters.engine.requests import Logprobs, Scores, TokenEvent
from jaxserver.adapters.engine.stream import Channel, Item
from jaxserver.core import detokenizer
from jaxserver.core.detokenizer import TextState
from jaxserver.ports.errors import JaxServerError
from jaxserver.ports.origin import UNKNOWN, Origin
from jaxserver.ports.telemetry import Arrival, RequestRecord
from jaxserver.ports.tokenizer import Tokenizer
from jaxserver.ports.types import (
    Chunk,
    FinishReason,
    GenerationRequest,
    SamplingParams,
    TokenLogprob,
    Usage,
)


@dataclasses.dataclass(slots=True, kw_only=True)
class Answer:
    """Owned by the decoding thread once its request has been submitted.

    Attributes:
        origin: Who asked.
        is_cancelled: Written by whoever cancels.
        asked: What is run, nothing left to the server; None before it is known.
        end_ids: The tokens that end it.
        receipt: What is to become one, where the request asked.
        scores: By place, what the prompt's tokens are worth; None when nobody asked, or
            when the reader has been told.
        arrivals: When tokens came, and how many.
        outcome: How it ended; None while it goes on.
    """

    request_id: int
    sampling: SamplingParams
    seed: int
    channel: Channel
    tokenizer: Tokenizer
    queued_seconds: float
    deadline: float | None = None
    origin: Origin = UNKNOWN
    is_cancelled: bool = False
    asked: GenerationRequest | None = None
    end_ids: frozenset[int] = frozenset()
    receipt: ReceiptWriter | None = None
    prompt_tokens: int = 0
    prompt_tokens_dropped: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    admitted_seconds: float | None = None
    scores: dict[int, TokenLogprob] | None = None
    arrivals: list[Arrival] = dataclasses.field(default_factory=list)
    outcome: str | None = None
    text: TextState | None = None

    def take_in(self, event: TokenEvent, now: float) -> Item | None:
        """Follows one event; what the reader is to get, if anything."""
        if isinstance(event.end, JaxServerError):
            self.outcome = event.end.code
            return event.end
        if event.scores is not None:
            self._take_scores(event.scores)
        pieces = [self.tokenizer.token_bytes(token) for token in event.token_ids]
        taken, text, is_stopped = self._read(pieces)
        self.completion_tokens += taken
        if taken:
            self.arrivals.append(Arrival(now - self.queued_seconds, taken))
        end = FinishReason.STOP if is_stopped else event.end
        if end is not None:
            self.outcome = end.value
            text += "" if is_stopped else self._rest()
        if not taken and end is None:
            return None
        chunk = Chunk(
            text=text,
            token_ids=event.token_ids[:taken],
            usage=self._usage(),
            logprobs=self._logprobs(event.token_ids, pieces[:taken], event.logprobs),
            prompt_logprobs=self._prompt_logprobs(),
            finish_reason=end,
            seed=None if end is None else self.seed,
        )
        if self.receipt is not None:
            self.receipt.note(chunk)
        return chunk

    def begin(self, read: tuple[int, ...], end_ids: frozenset[int]) -> bool:
        """Goes on where its reader is; whether the answer has ended there."""
        self.completion_tokens = len(read)
        _, _, is_stopped = self._read([self.tokenizer.token_bytes(t) for t in read])
        return is_stopped or bool(read and read[-1] in end_ids)

    def has_been_told(self) -> None:
        """Its reader has all of the text so far."""
        self.text = TextState(strips_space=False)

    def _read(self, pieces: Sequence[bytes]) -> tuple[int, str, bool]:
        """Tokens up to a stop string, their text, and whether there was one."""
        stops = self.sampling.stop
        whole = detokenizer.add(self._state(), b"".join(pieces), stops)
        if not whole.is_stopped:
            self.text = whole.state
            return len(pieces), whole.text, False
        return self._read_singly(pieces)

    def _read_singly(self, pieces: Sequence[bytes]) -> tuple[int, str, bool]:
        """The same token by token, to learn which of them completes a stop string."""
        text = ""
        for count, token_bytes in enumerate(pieces, 1):
            piece = detokenizer.add(self._state(), token_bytes, self.sampling.stop)
            self.text = piece.state
            text += piece.text
            if piece.is_stopped:
                return count, text, True
        return len(pieces), text, False

    def _state(self) -> TextState:
        strips = self.tokenizer.strips_leading_space
        return self.text or TextState(strips_space=strips)

    def _rest(self) -> str:
        return detokenizer.finish(self._state(), self.sampling.stop)

    def _logprobs(
        self,
        token_ids: Sequence[int],
        pieces: Sequence[bytes],
        logprobs: Logprobs | None,
    ) -> tuple[TokenLogprob, ...] | None:
        """One entry for each of the pieces, where the request asked for them."""
        if self.sampling.logprobs is None:
            return None
        return () if logprobs is None else self._entries(token_ids, pieces, logprobs)

    def _take_scores(self, scores: Scores) -> None:
        if self.scores is not None:
            pieces = [self.tokenizer.token_bytes(token) for token in scores.token_ids]
            entries = self._entries(scores.token_ids, pieces, scores.logprobs)
            self.scores.update(enumerate(entries, scores.start))

    def _prompt_logprobs(self) -> tuple[TokenLogprob, ...] | None:
        """All of them, once."""
        if self.scores is None:
            return None
        entries = tuple(entry for _, entry in sorted(self.scores.items()))
        self.scores = None
        return entries

    def _entries(
        self, token_ids: Sequence[int], pieces: Sequence[bytes], logprobs: Logprobs
    ) -> tuple[TokenLogprob, ...]:
        chosen = logprobs.chosen.tolist()
        top_ids, top = logprobs.top_ids.tolist(), logprobs.top.tolist()
        return tuple(
            TokenLogprob(
                token_id=token_ids[i],
                token_bytes=token_bytes,
                logprob=chosen[i],
                top=self._top(top_ids[i], top[i]),
            )
            for i, token_bytes in enumerate(pieces)
        )

    def _top(
        self, token_ids: Sequence[int], values: Sequence[float]
    ) -> tuple[TokenLogprob, ...]:
        token_bytes = self.tokenizer.token_bytes
        return tuple(
            TokenLogprob(token_id=token, token_bytes=token_bytes(token), logprob=value)
            for token, value in zip(token_ids, values, strict=True)
        )

    def _usage(self) -> Usage:
        return Usage(
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            prompt_tokens_dropped=self.prompt_tokens_dropped,
            cached_tokens=self.cached_tokens,
        )

    def record(self, now: float) -> RequestRecord:
        """What telemetry hears once the answer has ended."""
        begun, admitted = self.queued_seconds, self.admitted_seconds
        return RequestRecord(
            request_id=self.request_id,
            outcome=self.outcome or "open",
            usage=self._usage(),
            queue_seconds=None if admitted is None else admitted - begun,
            first_token_seconds=self.arrivals[0].seconds if self.arrivals else None,
            total_seconds=now - begun,
            arrivals=tuple(self.arrivals),
            origin=self.origin,
        )
