"""Reading one answer: its text as it comes, its counts at the end."""

import dataclasses
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from jaxserver.adapters.cli.program import OpenModel, Program
from jaxserver.adapters.cli.progress import bars
from jaxserver.ports.config import ServerConfig
from jaxserver.ports.generator import Stream
from jaxserver.ports.types import Chunk, FinishReason, Message, TokenLogprob


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """All the chunks of a stream, and the seconds it took to read them."""

    chunks: tuple[Chunk, ...]
    finish_reason: FinishReason
    seconds: float

    @property
    def text(self) -> str:
        return "".join(chunk.text for chunk in self.chunks)

    @property
    def token_ids(self) -> tuple[int, ...]:
        return tuple(token for chunk in self.chunks for token in chunk.token_ids)

    @property
    def logprobs(self) -> tuple[TokenLogprob, ...]:
        return tuple(entry for chunk in self.chunks for entry in chunk.logprobs or ())

    @property
    def last(self) -> Chunk:
        return self.chunks[-1]

    @property
    def summary(self) -> str:
        """Counts, speed and how it ended."""
        usage = self.last.usage
        speed = usage.completion_tokens / max(self.seconds, 1e-9)
        return (
            f"{usage.prompt_tokens} prompt tokens, {usage.completion_tokens} tokens in "
            f"{self.seconds:.2f} s ({speed:.1f} tokens/s), "
            f"seed {self.last.seed}, {self.finish_reason.value}"
        )


def read(stream: Stream, *, show: bool) -> Answer:
    """Reads a stream to its end, writing its text to the standard output if wanted.

    The first Ctrl-C cancels it, which ends it with what came; the next one raises.
    """
    began = time.monotonic()
    chunks: list[Chunk] = []
    with stream, cancelled_by_interrupt(stream):
        for chunk in stream:
            chunks.append(chunk)
            if show:
                write(chunk.text)
    seconds = time.monotonic() - began
    (reason,) = (chunk.finish_reason for chunk in chunks if chunk.finish_reason)
    return Answer(chunks=tuple(chunks), finish_reason=reason, seconds=seconds)


def write(text: str) -> None:
    """Writes at once, and exactly this: echoing functions drop escape sequences."""
    sys.stdout.write(text)
    sys.stdout.flush()


@contextmanager
def cancelled_by_interrupt(stream: Stream) -> Iterator[None]:
    def cancel(_signal: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        # In a thread: the reader we interrupt may hold a lock that `cancel` wants.
        threading.Thread(target=stream.cancel, daemon=True).start()

    before = signal.signal(signal.SIGINT, cancel)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def opened(
    program: Program, config: ServerConfig, *, quiet: bool
) -> Iterator[OpenModel]:
    """A model, with bars shown until it is there."""
    with bars(quiet=quiet) as progress, program.open(config, progress) as model:
        progress.stop()
        yield model


def beginning(system: str | None) -> tuple[Message, ...]:
    """A conversation in which nobody has spoken yet."""
    return () if system is None else (Message(role="system", content=system),)
