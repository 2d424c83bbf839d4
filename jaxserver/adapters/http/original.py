"""The original's two routes, `/instruct` and `/chat`."""

import asyncio
import contextlib
import dataclasses
import json
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any, TypeVar

import pydantic
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from jaxserver.adapters.http import openapi
from jaxserver.adapters.http.answer import (
    Chunks,
    FinishedAnswer,
    chunks_of,
    finished,
    receipt_field,
    together,
)
from jaxserver.adapters.http.body import BodyReader, invalid
from jaxserver.adapters.http.disconnect import unless_client_leaves
from jaxserver.adapters.http.handler_pool import HandlerPool
from jaxserver.adapters.http.original_wire import (
    ChatBody,
    Down,
    InstructBody,
    OriginalAnswer,
    Piece,
)
from jaxserver.adapters.http.sse import EventStream
from jaxserver.adapters.http.wire import json_response
from jaxserver.ports.generator import Generator
from jaxserver.ports.handlers import (
    URGENCY,
    Answer,
    ChatRequest,
    Handlers,
    InstructRequest,
    Urgency,
    sampling_fields,
)
from jaxserver.ports.origin import ORIGIN
from jaxserver.ports.prompt import PromptFormatter, Rendered, conversation
from jaxserver.ports.types import Chunk, GenerationRequest, Message, SamplingParams

Body = TypeVar("Body", InstructRequest, ChatRequest)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OriginalRoutes:
    """Answers by the model, or by the user's own handlers.

    Attributes:
        truncate_prompts: Cut a prompt that is too long instead of refusing it.
    """

    generator: Generator
    formatter: PromptFormatter
    instruct_formatter: PromptFormatter
    handlers: Handlers
    pool: HandlerPool
    read: BodyReader
    truncate_prompts: bool

    def router(self) -> APIRouter:
        routes = APIRouter()
        routes.add_api_route(
            "/instruct",
            self.instruct,
            **_described(InstructBody, self.handlers.forward_instruct),
        )
        routes.add_api_route(
            "/chat", self.chat, **_described(ChatBody, self.handlers.forward_chat)
        )
        return routes

    async def instruct(self, request: Request) -> Response:
        """Answers one instruction."""
        body = await self.read(request, InstructBody)
        if self.handlers.forward_instruct is not None:
            _check_own(body)
            asked = body.to_request()
            return await self._handled(request, self.handlers.forward_instruct, asked)
        messages = conversation([], body.prompt, body.system)
        return await self._generated(request, body, self.instruct_formatter, messages)

    async def chat(self, request: Request) -> Response:
        """Answers one turn of a conversation."""
        body = await self.read(request, ChatBody)
        if self.handlers.forward_chat is not None:
            _check_own(body)
            asked = body.to_request()
            return await self._handled(request, self.handlers.forward_chat, asked)
        messages = conversation(body.history, body.prompt, body.system)
        return await self._generated(request, body, self.formatter, messages)

    async def _handled(
        self, request: Request, handler: Callable[[Body], Answer], body: Body
    ) -> Response:
        URGENCY.set(Urgency(body.priority or 0, body.deadline_seconds))
        if body.stream:
            return EventStream(_whole_event(self.pool, handler, body))
        work = self.pool.run(handler, body)
        return JSONResponse(dict(await unless_client_leaves(request.receive, work)))

    async def _generated(
        self,
        request: Request,
        body: InstructBody | ChatBody,
        formatter: PromptFormatter,
        messages: Sequence[Message],
    ) -> Response:
        # In a thread, since a formatter may be the user's own and take its time.
        prompt = await asyncio.to_thread(Rendered.by, formatter, messages)
        wanted = GenerationRequest(
            prompt=prompt,
            sampling=SamplingParams(**sampling_fields(body.to_request())),
            truncate=self.truncate_prompts,
            streaming=bool(body.stream),
            priority=body.priority or 0,
            deadline_seconds=body.deadline_seconds,
            receipt=bool(body.receipt),
            origin=ORIGIN.get(),
        )
        chunks = chunks_of(self.generator, wanted)
        if body.stream:
            return EventStream(_events(prompt, chunks))
        answer = await unless_client_leaves(request.receive, finished(chunks))
        return json_response(_answer(prompt, answer))


def _described(
    body: type[pydantic.BaseModel], handler: Callable[..., Answer] | None
) -> dict[str, Any]:
    """A handler's answer may be any object."""
    answer, events = OriginalAnswer | Down, Piece | OriginalAnswer
    theirs = dict[str, object]
    return openapi.route(
        theirs if handler else answer,
        body=body,
        events=theirs if handler else events,
        also=openapi.DEADLINE,
    )


async def _whole_event(
    pool: HandlerPool, handler: Callable[[Body], Answer], body: Body
) -> AsyncGenerator[str, None]:
    answer = await pool.run(handler, body)
    yield json.dumps(dict(answer), ensure_ascii=False, allow_nan=False)


async def _events(prompt: str, chunks: Chunks) -> AsyncGenerator[str, None]:
    """The pieces of an answer, which joined are its text, and then the answer whole."""
    read: list[Chunk] = []
    async with contextlib.aclosing(chunks):
        async for chunk in chunks:
            read.append(chunk)
            if chunk.text:
                used = chunk.usage.completion_tokens
                yield Piece(response=chunk.text, tokens_used=used).model_dump_json()
    yield _answer(prompt, together(read)).model_dump_json(exclude_unset=True)


def _check_own(body: InstructBody | ChatBody) -> None:
    """A method of the user's own may answer by whatever it likes.

    Raises:
        Refused: A receipt is wanted of it.
    """
    if body.receipt:
        raise invalid(
            "receipt", "allowed is false where the server's own method answers"
        )


def _answer(prompt: str, answer: FinishedAnswer) -> OriginalAnswer:
    return OriginalAnswer(
        input=prompt,
        response=answer.text,
        tokens_used=answer.usage.completion_tokens,
        prompt_tokens=answer.usage.prompt_tokens,
        prompt_tokens_dropped=answer.usage.prompt_tokens_dropped,
        finish_reason=answer.finish_reason,
        seed=answer.seed,
        **receipt_field(answer.receipt),
    )
