"""Writes down what an answer depends on, while it grows."""

import dataclasses
import logging
from concurrent.futures import Future
from typing import TypeGuard

from jaxserver.adapters.engine.stream import Item
from jaxserver.ports.errors import EngineFailed
from jaxserver.ports.receipt import Identity, Outcome, Receipt
from jaxserver.ports.types import (
    Chunk,
    FinishReason,
    GenerationRequest,
    TokenLogprob,
)

LOGGER = logging.getLogger("jaxserver")


def has_receipt(item: Item) -> TypeGuard[Chunk]:
    """Whether it is the end of an answer that is there as a whole."""
    ends = (FinishReason.STOP, FinishReason.LENGTH)
    return isinstance(item, Chunk) and item.finish_reason in ends


@dataclasses.dataclass(slots=True)
class ReceiptWriter:
    """Gathers one receipt.

    Attributes:
        request: As it is run, its prompt in ids and nothing left to the server.
        end_ids: The tokens that end the answer.
    """

    request: GenerationRequest
    end_ids: frozenset[int]
    _ids: list[int] = dataclasses.field(default_factory=list)
    _logprobs: list[TokenLogprob] = dataclasses.field(default_factory=list)
    _prompt: list[TokenLogprob] = dataclasses.field(default_factory=list)

    def note(self, chunk: Chunk) -> None:
        """Hears of every chunk, in order."""
        self._ids += chunk.token_ids
        self._logprobs += chunk.logprobs or ()
        self._prompt += chunk.prompt_logprobs or ()

    def written(self, last: Chunk, identity: Future[Identity]) -> Item:
        """The last chunk with the receipt, or why there is none; nothing is awaited."""
        try:
            known = identity.result(0)
        except Exception as error:
            LOGGER.exception("a receipt could not be written")
            reason = f"the receipt could not be written: {type(error).__name__}"
            return EngineFailed(reason)
        asked = self.request
        outcome = Outcome.of(
            self._ids,
            None if asked.sampling.logprobs is None else self._logprobs,
            self._prompt if asked.score_prompt else None,
        )
        ends = tuple(sorted(self.end_ids))
        receipt = Receipt(identity=known, request=asked, end_ids=ends, answer=outcome)
        return dataclasses.replace(last, receipt=receipt)
