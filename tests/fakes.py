"""Ports implemented in a few lines, for tests that need no model."""

import dataclasses
import itertools
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Self

from jaxserver.ports.errors import UnsupportedMessages
from jaxserver.ports.receipt import Identity, Outcome, Receipt, request_again
from jaxserver.ports.status import ServerState, StatusSnapshot
from jaxserver.ports.types import (
    Chunk,
    FinishReason,
    GenerationRequest,
    Message,
    TokenLogprob,
    Usage,
)

IDENTITY = Identity(
    model="fake",
    weights="aa",
    settings="bb",
    tokenizer="cc",
    template=None,
    config={"slots": 4, "mesh_axes_shape": (1, 1, 1)},
    versions={"jaxserver": "0"},
)


def known(identity: Identity = IDENTITY) -> Future[Identity]:
    """An identity that needs no waiting for."""
    future: Future[Identity] = Future()
    future.set_result(identity)
    return future


class ByteTokenizer:
    """Every byte is a token; 256 begins and 257 ends a text."""

    vocab_size = 258
    bos_id: int | None = 256
    eos_ids = frozenset({257})
    strips_leading_space = False

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        ids = list(text.encode())
        return [256, *ids] if add_special_tokens else ids

    def decode(self, ids: Sequence[int]) -> str:
        return b"".join(map(self.token_bytes, ids)).decode(errors="replace")

    def token_bytes(self, token: int) -> bytes:
        return bytes([token]) if token < 256 else b""


class ByteFormatter:
    """Writes `role: content` lines."""

    def format(self, messages: Sequence[Message]) -> str:
        for before, after in itertools.pairwise(messages):
            if before.role == after.role == "user":
                raise UnsupportedMessages("two user messages in a row")
        lines = [f"{message.role}: {message.content}\n" for message in messages]
        return "".join([*lines, "assistant: "])

    def system_turn(self, messages: Sequence[Message]) -> str:
        if not messages or messages[0].role != "system":
            return ""
        return f"system: {messages[0].content}\n"


class ScriptedStream:
    """Plays chunks back; `chunk_seconds` of waiting go before each of them.

    `is_due` says of a chunk, by its number from 0, whether it may come yet.
    """

    def __init__(
        self,
        chunks: Sequence[Chunk],
        chunk_seconds: float,
        is_due: Callable[[int], bool] = lambda number: True,
    ) -> None:
        self._chunks = list(chunks)
        self._chunk_seconds = chunk_seconds
        self._is_due = is_due
        self.num_given = 0
        self._last_usage = Usage(prompt_tokens=0, completion_tokens=0)
        self.cancelled = threading.Event()
        self.finished = False

    def __iter__(self) -> Iterator[Chunk]:
        return self

    def __next__(self) -> Chunk:
        comes = self._next_comes()
        while not comes():
            self.cancelled.wait(0.005)
        return self._give()

    def _next_comes(self) -> Callable[[], bool]:
        """Begins to wait; what it returns says whether that is over."""
        is_over = self.finished or not self._chunks
        due_seconds = time.monotonic() + self._chunk_seconds
        return lambda: (
            is_over
            or self.cancelled.is_set()
            or (time.monotonic() >= due_seconds and self._is_due(self.num_given))
        )

    def _give(self) -> Chunk:
        if self.finished:
            raise StopIteration
        if self.cancelled.is_set() or not self._chunks:
            self.finished = True
            return Chunk(
                text="",
                token_ids=(),
                usage=self._last_usage,
                finish_reason=FinishReason.CANCELLED,
                seed=0,
            )
        chunk = self._chunks.pop(0)
        self.num_given += 1
        self._last_usage = chunk.usage
        self.finished = chunk.finish_reason is not None
        return chunk

    def __aiter__(self) -> AsyncIterator[Chunk]:
        return self

    async def __anext__(self) -> Chunk:
        import asyncio  # noqa: PLC0415  # plain readers need no event loop

        comes = self._next_comes()
        while not comes():
            await asyncio.sleep(0.005)
        try:
            return self._give()
        except StopIteration:
            raise StopAsyncIteration from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.cancel()

    def cancel(self) -> None:
        if not self.finished:
            self.cancelled.set()


class ScriptedGenerator:
    """Answers every request with the same pieces of text, one token a piece.

    `requests` and `streams` hold what it was asked and gave; `fail`, where set, makes
    the error that `generate` raises; `is_due` holds the chunks of later streams back;
    `identity` is what its receipts say of it.
    """

    def __init__(self, *pieces: str, chunk_seconds: float = 0.0, seed: int = 7) -> None:
        self.pieces = pieces
        self.chunk_seconds = chunk_seconds
        self.seed = seed
        self.identity = IDENTITY
        self.requests: list[GenerationRequest] = []
        self.streams: list[ScriptedStream] = []
        self.fail: Callable[[], Exception] | None = None
        self.is_due: Callable[[int], bool] = lambda number: True

    def generate(self, request: GenerationRequest) -> ScriptedStream:
        self.requests.append(request)
        if self.fail is not None:
            raise self.fail()
        chunks = [self._chunk(request, i) for i in range(len(self.pieces))]
        stream = ScriptedStream(chunks, self.chunk_seconds, self.is_due)
        self.streams.append(stream)
        return stream

    def _chunk(self, request: GenerationRequest, i: int) -> Chunk:
        is_last = i == len(self.pieces) - 1
        wanted = request.sampling.logprobs
        logprob = TokenLogprob(
            token_id=i, token_bytes=self.pieces[i].encode(), logprob=-0.5
        )
        entry = TokenLogprob(
            token_id=i,
            token_bytes=self.pieces[i].encode(),
            logprob=-0.5,
            top=(logprob,) * (wanted or 0),
        )
        return Chunk(
            text=self.pieces[i],
            token_ids=(i,),
            usage=Usage(prompt_tokens=3, completion_tokens=i + 1),
            logprobs=None if wanted is None else (entry,),
            finish_reason=FinishReason.STOP if is_last else None,
            seed=self.seed if is_last else None,
            receipt=self._receipt(request) if is_last and request.receipt else None,
        )

    def _receipt(self, request: GenerationRequest) -> Receipt:
        given = request.prompt if isinstance(request.prompt, tuple) else (1, 2, 3)
        sampling = dataclasses.replace(
            request.sampling,
            temperature=0.5,
            top_k=3,
            top_p=0.5,
            max_new_tokens=9,
            seed=self.seed,
        )
        return Receipt(
            identity=self.identity,
            request=request_again(given, sampling),
            end_ids=(257,),
            answer=Outcome.of(range(len(self.pieces))),
        )


class FixedMetrics:
    """Metrics that say one thing."""

    content_type = "text/plain; version=0.0.4; charset=utf-8"

    def scrape(self) -> bytes:
        return b"# HELP up Up.\n# TYPE up gauge\nup 1.0\n"


class ScriptedProfiler:
    """Waits as it is told to, and returns an archive that is none.

    `asked` holds the seconds; `ended` says of each whether it was cancelled.
    """

    def __init__(self, fail: Callable[[], Exception] | None = None) -> None:
        self.asked: list[float] = []
        self.ended: list[bool] = []
        self.fail = fail

    def capture(self, seconds: float, cancelled: threading.Event) -> bytes:
        self.asked.append(seconds)
        if self.fail is not None:
            raise self.fail()
        self.ended.append(cancelled.wait(seconds))
        return b"archive"


class FixedStatus:
    """A server in whatever state a test puts it."""

    def __init__(self, state: ServerState = ServerState.READY) -> None:
        self.state = state
        self.model_name = "fake"

    def snapshot(self) -> StatusSnapshot:
        return StatusSnapshot(
            model=self.model_name,
            config={"api_key": True},
            state=self.state,
            devices=("cpu:0",),
            cores=2,
            memory={"resident": 1, "weights": 2, "cache": 3},
            uptime_seconds=1.5,
            requests_served=1,
            prompts_served=1,
            tokens_generated=2,
            slots_in_use=0,
            queue_length=0,
            compiles_after_ready=0,
        )

    def fingerprint(self) -> str | None:
        return IDENTITY.fingerprint()

    def is_ready(self) -> bool:
        return self.state is ServerState.READY

    def is_alive(self) -> bool:
        return self.state is not ServerState.FAILED
