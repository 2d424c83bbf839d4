"""Saves answers as far as they have come, and goes on with them."""

import dataclasses
from concurrent.futures import CancelledError, Future
from pathlib import Path
from typing import Protocol

from jaxserver.adapters.engine import saved
from jaxserver.adapters.engine.answer import Answer
from jaxserver.adapters.engine.loop import EngineLoop
from jaxserver.adapters.engine.requests import NO_PAGES
from jaxserver.adapters.engine.saved import Saved
from jaxserver.adapters.engine.stream import Begun, EngineStream
from jaxserver.ports.errors import BrokenCheckpoint, EngineFailed, InvalidRequest
from jaxserver.ports.generator import SavableStream
from jaxserver.ports.receipt import Identity, Outcome, Receipt
from jaxserver.ports.types import MAX_CHOICES, GenerationRequest

_WHAT_DECIDES = ("weights", "settings", "tokenizer")
"""An answer does not go on where these are others."""


class Engine(Protocol):
    """What it takes to go on."""

    @property
    def loop(self) -> EngineLoop: ...

    @property
    def identity(self) -> Identity: ...

    def go_on(self, begun: Begun) -> EngineStream: ...


class Keeper:
    """Knows how one answer goes on; implements `stream.GoingOn`."""

    def __init__(
        self, engine: Engine, answer: Answer, begun: Begun, taken: "Future[None]"
    ) -> None:
        """Takes an answer, and what ends when the engine has taken its request."""
        self._engine = engine
        self._answer = answer
        self._before = begun.read
        self._taken = taken

    def save(self, path: Path, read: tuple[int, ...], is_finished: bool) -> None:
        asked, drawn = self._asked(), self._before + read
        receipt = Receipt(
            identity=self._engine.identity,
            request=asked,
            end_ids=tuple(sorted(self._answer.end_ids)),
            answer=Outcome.of(drawn),
        )
        # The keys and values of the last token are made when the next one is drawn.
        kept = self._engine.loop.look((*asked.prompt, *drawn)[:-1])
        saved.write(path, Saved(receipt, is_finished, kept))

    def fork(self, read: tuple[int, ...], count: int) -> list[SavableStream]:
        asked, drawn = self._asked(), self._before + read
        room = MAX_CHOICES - 1 - asked.choice
        if not 1 <= count <= room:
            raise InvalidRequest("count", str(count), f"an integer from 1 to {room}")
        streams: list[SavableStream] = []
        try:
            for nth in range(1, count + 1):
                other = _plain(asked, choice=asked.choice + nth)
                streams.append(self._engine.go_on(Begun(other, drawn)))
        except Exception:
            for stream in streams:
                stream.cancel()
            raise
        return streams

    def _asked(self) -> GenerationRequest:
        try:
            self._taken.result()
        except CancelledError:
            raise EngineFailed("the engine does not run any more") from None
        if self._answer.asked is None:
            raise EngineFailed("the engine has not taken the request")
        return self._answer.asked


def resume(engine: Engine, path: Path, max_new_tokens: int | None) -> EngineStream:
    """Goes on with a saved answer; what the cache held is used where it fits.

    Raises:
        BrokenCheckpoint: The file is not what `save` writes.
        InvalidRequest: It was saved with another model.
    """
    stored = saved.read(path)
    there, here = stored.receipt.identity, engine.identity
    for name in _WHAT_DECIDES:
        before, now = getattr(there, name), getattr(here, name)
        if before != now:
            allowed = f"an answer that was saved with this model, whose are {now}"
            raise InvalidRequest(str(path), f"{name} {before}", allowed)
    asked, drawn = stored.receipt.request, stored.receipt.answer.ids
    kept = stored.kept if there.fingerprint() == here.fingerprint() else NO_PAGES
    if kept.length:
        tokens = (*asked.prompt, *drawn)[:-1]
        if kept.length > len(tokens) or not engine.loop.fits(kept):
            expected, found = "pages of this model's cache", "others"
            raise BrokenCheckpoint(str(path), None, expected=expected, found=found)
        engine.loop.bring(tokens[: kept.length], kept)
    if max_new_tokens is not None:
        sampling = dataclasses.replace(asked.sampling, max_new_tokens=max_new_tokens)
        asked = dataclasses.replace(asked, sampling=sampling)
    return engine.go_on(Begun(_plain(asked), drawn, stored.is_finished))


def _plain(asked: GenerationRequest, choice: int | None = None) -> GenerationRequest:
    """The request for what is still to come."""
    return dataclasses.replace(
        asked,
        choice=asked.choice if choice is None else choice,
        streaming=True,
        score_prompt=False,
        receipt=False,
    )
