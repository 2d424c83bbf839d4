"""Puts answers into OpenAI's forms: chat or text, whole or as events."""

import contextlib
import dataclasses
from collections.abc import AsyncGenerator, Sequence
from typing import Any, NamedTuple

from jaxserver.adapters.http.answer import FinishedAnswer, Interleaved, receipt_field
from jaxserver.adapters.http.openai_answers import (
    AssistantMessage,
    ChatChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChunkChoice,
    Completion,
    Delta,
    FinishText,
    PromptTokens,
    TextChoice,
    TextLogprobs,
    TokenUsage,
)
from jaxserver.adapters.http.openai_logprobs import TextLogprobsWriter, chat_logprobs
from jaxserver.ports.types import Chunk, FinishReason, Usage


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """What an answer, or every event of it, begins with.

    Attributes:
        created: Seconds since 1970.
        fingerprint: Short for all that answers depend on besides their requests.
        include_usage: An event with the counts of tokens is wanted at the end.
    """

    id: str
    created: int
    model: str
    fingerprint: str | None = None
    include_usage: bool = False

    def fields(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
        }


class Echo(NamedTuple):
    """A prompt that is written before its answer.

    Attributes:
        first: What its first token adds to the text.
    """

    text: str
    first: bytes


def chat_completion(head: Head, answers: Sequence[FinishedAnswer]) -> ChatCompletion:
    choices = [
        ChatChoice(
            index=index,
            message=AssistantMessage(
                role="assistant", content=answer.text, refusal=None
            ),
            logprobs=chat_logprobs(answer.logprobs),
            finish_reason=_finish_text(answer.finish_reason),
        )
        for index, answer in enumerate(answers)
    ]
    return ChatCompletion(
        **head.fields(),
        object="chat.completion",
        choices=choices,
        usage=_usage([answer.usage for answer in answers]),
        seed=answers[0].seed,
        **receipt_field(answers[0].receipt),
    )


def text_completion(
    head: Head, answers: Sequence[FinishedAnswer], echo: Echo | None
) -> Completion:
    choices = [
        TextChoice(
            index=index,
            text=(echo.text if echo else "") + answer.text,
            logprobs=_text_logprobs(TextLogprobsWriter(), answer, echo),
            finish_reason=_finish_text(answer.finish_reason),
        )
        for index, answer in enumerate(answers)
    ]
    return Completion(
        **head.fields(),
        object="text_completion",
        choices=choices,
        usage=_usage([answer.usage for answer in answers]),
        seed=answers[0].seed,
        **receipt_field(answers[0].receipt),
    )


def _text_logprobs(
    writer: TextLogprobsWriter, piece: FinishedAnswer | Chunk, echo: Echo | None
) -> TextLogprobs | None:
    """Those of a piece, after the prompt's where that goes before it."""
    if echo is None or piece.logprobs is None:
        return writer.write(piece.logprobs)
    both = (*(piece.prompt_logprobs or ()), *piece.logprobs)
    return writer.write(both, echo.first)


async def chat_events(head: Head, chunks: Interleaved) -> AsyncGenerator[str, None]:
    """Roles, pieces, finish reasons and, where wanted, the usage."""
    begun: set[int] = set()
    usages: dict[int, Usage] = {}
    async with contextlib.aclosing(chunks):
        async for index, chunk in chunks:
            if index not in begun:
                yield _chat_event(head, index, Delta(role="assistant", content=""))
                begun.add(index)
            if chunk.text or chunk.logprobs:
                yield _chat_event(head, index, Delta(content=chunk.text), chunk)
            if chunk.finish_reason is not None:
                usages[index] = chunk.usage
                yield _chat_end(head, index, chunk)
    if head.include_usage:
        yield _event(head, _CHAT, [], usage=_usage([usages[i] for i in sorted(usages)]))


async def text_events(
    head: Head, chunks: Interleaved, echo: Echo | None
) -> AsyncGenerator[str, None]:
    """Pieces, the prompt before each first one where wanted, ends and usage."""
    logprobs: dict[int, TextLogprobsWriter] = {}
    usages: dict[int, Usage] = {}
    async with contextlib.aclosing(chunks):
        async for index, chunk in chunks:
            before = None if index in logprobs else echo
            writer = logprobs.setdefault(index, TextLogprobsWriter())
            if chunk.text or chunk.logprobs or before:
                yield _text_event(head, index, chunk, writer, before)
            if chunk.finish_reason is not None:
                usages[index] = chunk.usage
                yield _text_end(head, index, chunk)
    if head.include_usage:
        yield _event(head, _TEXT, [], usage=_usage([usages[i] for i in sorted(usages)]))


_CHAT = ChatCompletionChunk
_TEXT = Completion
_OBJECTS = {_CHAT: "chat.completion.chunk", _TEXT: "text_completion"}


def _chat_event(
    head: Head, index: int, delta: Delta, chunk: Chunk | None = None
) -> str:
    logprobs = chat_logprobs(chunk.logprobs if chunk else None)
    choice = ChunkChoice(
        index=index, delta=delta, logprobs=logprobs, finish_reason=None
    )
    return _event(head, _CHAT, [choice])


def _chat_end(head: Head, index: int, chunk: Chunk) -> str:
    reason = _finish_text(chunk.finish_reason)
    choice = ChunkChoice(
        index=index, delta=Delta(), logprobs=None, finish_reason=reason
    )
    more = receipt_field(chunk.receipt)
    return _event(head, _CHAT, [choice], seed=chunk.seed, **more)


def _text_event(
    head: Head,
    index: int,
    chunk: Chunk,
    logprobs: TextLogprobsWriter,
    echo: Echo | None,
) -> str:
    choice = TextChoice(
        index=index,
        text=(echo.text if echo else "") + chunk.text,
        logprobs=_text_logprobs(logprobs, chunk, echo),
        finish_reason=None,
    )
    return _event(head, _TEXT, [choice])


def _text_end(head: Head, index: int, chunk: Chunk) -> str:
    reason = _finish_text(chunk.finish_reason)
    choice = TextChoice(index=index, text="", logprobs=None, finish_reason=reason)
    more = receipt_field(chunk.receipt)
    return _event(head, _TEXT, [choice], seed=chunk.seed, **more)


def _event(
    head: Head,
    form: type[ChatCompletionChunk] | type[Completion],
    choices: list[Any],
    **more: Any,
) -> str:
    """One event; OpenAI writes `usage: null` in all but the last where it is wanted."""
    fields = {**head.fields(), "object": _OBJECTS[form], "choices": choices}
    usage = {"usage": None} if head.include_usage else {}
    return form(**{**fields, **usage, **more}).model_dump_json(exclude_unset=True)


def _usage(usages: Sequence[Usage]) -> TokenUsage:
    """Of one prompt and all its answers."""
    first, drawn = usages[0], sum(usage.completion_tokens for usage in usages)
    return TokenUsage(
        prompt_tokens=first.prompt_tokens,
        completion_tokens=drawn,
        total_tokens=first.prompt_tokens + drawn,
        prompt_tokens_details=PromptTokens(cached_tokens=first.cached_tokens),
    )


def _finish_text(reason: FinishReason | None) -> FinishText:
    return "length" if reason is FinishReason.LENGTH else "stop"
