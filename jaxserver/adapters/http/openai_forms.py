"""Puts answers into OpenAI's forms: chat or text, whole or as events."""

import contextlib
import dataclasses
from collections.abc import AsyncGenerator
from typing import Any

from jaxserver.adapters.http.answer import Chunks, FinishedAnswer, receipt_field
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


def chat_completion(head: Head, answer: FinishedAnswer) -> ChatCompletion:
    choice = ChatChoice(
        index=0,
        message=AssistantMessage(role="assistant", content=answer.text, refusal=None),
        logprobs=chat_logprobs(answer.logprobs),
        finish_reason=_finish_text(answer.finish_reason),
    )
    return ChatCompletion(
        **head.fields(),
        object="chat.completion",
        choices=[choice],
        usage=_usage(answer.usage),
        seed=answer.seed,
        **receipt_field(answer.receipt),
    )


def text_completion(head: Head, answer: FinishedAnswer) -> Completion:
    choice = TextChoice(
        index=0,
        text=answer.text,
        logprobs=TextLogprobsWriter().write(answer.logprobs),
        finish_reason=_finish_text(answer.finish_reason),
    )
    return Completion(
        **head.fields(),
        object="text_completion",
        choices=[choice],
        usage=_usage(answer.usage),
        seed=answer.seed,
        **receipt_field(answer.receipt),
    )


async def chat_events(head: Head, chunks: Chunks) -> AsyncGenerator[str, None]:
    """The role, the pieces, the finish reason and, where wanted, the usage."""
    is_first = True
    async with contextlib.aclosing(chunks):
        async for chunk in chunks:
            if is_first:
                yield _chat_event(head, Delta(role="assistant", content=""))
                is_first = False
            if chunk.text or chunk.logprobs:
                yield _chat_event(head, Delta(content=chunk.text), chunk)
            if chunk.finish_reason is not None:
                yield _chat_end(head, chunk)
                if head.include_usage:
                    yield _event(head, _CHAT, [], usage=_usage(chunk.usage))


async def text_events(head: Head, chunks: Chunks) -> AsyncGenerator[str, None]:
    """The pieces, the finish reason and, where wanted, the usage."""
    logprobs = TextLogprobsWriter()
    async with contextlib.aclosing(chunks):
        async for chunk in chunks:
            if chunk.text or chunk.logprobs:
                yield _text_event(head, chunk, logprobs)
            if chunk.finish_reason is not None:
                yield _text_end(head, chunk)
                if head.include_usage:
                    yield _event(head, _TEXT, [], usage=_usage(chunk.usage))


_CHAT = ChatCompletionChunk
_TEXT = Completion
_OBJECTS = {_CHAT: "chat.completion.chunk", _TEXT: "text_completion"}


def _chat_event(head: Head, delta: Delta, chunk: Chunk | None = None) -> str:
    logprobs = chat_logprobs(chunk.logprobs if chunk else None)
    choice = ChunkChoice(index=0, delta=delta, logprobs=logprobs, finish_reason=None)
    return _event(head, _CHAT, [choice])


def _chat_end(head: Head, chunk: Chunk) -> str:
    reason = _finish_text(chunk.finish_reason)
    choice = ChunkChoice(index=0, delta=Delta(), logprobs=None, finish_reason=reason)
    more = receipt_field(chunk.receipt)
    return _event(head, _CHAT, [choice], seed=chunk.seed, **more)


def _text_event(head: Head, chunk: Chunk, logprobs: TextLogprobsWriter) -> str:
    written = logprobs.write(chunk.logprobs)
    choice = TextChoice(index=0, text=chunk.text, logprobs=written, finish_reason=None)
    return _event(head, _TEXT, [choice])


def _text_end(head: Head, chunk: Chunk) -> str:
    reason = _finish_text(chunk.finish_reason)
    choice = TextChoice(index=0, text="", logprobs=None, finish_reason=reason)
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


def _usage(usage: Usage) -> TokenUsage:
    return TokenUsage(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        total_tokens=usage.prompt_tokens + usage.completion_tokens,
        prompt_tokens_details=PromptTokens(cached_tokens=usage.cached_tokens),
    )


def _finish_text(reason: FinishReason | None) -> FinishText:
    return "length" if reason is FinishReason.LENGTH else "stop"
