"""OpenAI's routes: chat completions, completions and models."""

import asyncio
import dataclasses
import time
import uuid

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from jaxserver.adapters.http import openapi
from jaxserver.adapters.http.answer import all_finished, chunks_of, interleaved
from jaxserver.adapters.http.body import BodyReader, invalid
from jaxserver.adapters.http.disconnect import unless_client_leaves
from jaxserver.adapters.http.errors import Failure, Refused
from jaxserver.adapters.http.openai_answers import (
    ChatCompletion,
    ChatCompletionChunk,
    Completion,
    ServedModel,
    ServedModels,
)
from jaxserver.adapters.http.openai_forms import (
    Echo,
    Head,
    chat_completion,
    chat_events,
    text_completion,
    text_events,
)
from jaxserver.adapters.http.openai_wire import (
    ChatCompletionBody,
    CompletionBody,
    OpenAIBody,
)
from jaxserver.adapters.http.sse import EventStream
from jaxserver.adapters.http.system import check_ready
from jaxserver.adapters.http.wire import json_response
from jaxserver.ports.generator import Generator
from jaxserver.ports.origin import ORIGIN
from jaxserver.ports.prompt import PromptFormatter, Rendered
from jaxserver.ports.status import ServerStatus
from jaxserver.ports.tokenizer import Tokenizer

_NO_NAME = "jaxserver"
_NO_MODEL = {404: "There is no such model."}


@dataclasses.dataclass(frozen=True, kw_only=True)
class OpenAIRoutes:
    """Answers in OpenAI's form.

    Attributes:
        tokenizer: Makes text of a prompt that comes as ids and is to be echoed.
        status: Knows the served model's name; without it any name is taken.
        created: When the model came, in seconds since 1970.
    """

    generator: Generator
    formatter: PromptFormatter
    tokenizer: Tokenizer | None
    status: ServerStatus | None
    read: BodyReader
    created: int = dataclasses.field(default_factory=lambda: int(time.time()))

    def router(self) -> APIRouter:
        routes = APIRouter(prefix="/v1")
        routes.add_api_route(
            "/chat/completions",
            self.chat_completions,
            **openapi.route(
                ChatCompletion,
                body=ChatCompletionBody,
                events=ChatCompletionChunk,
                openai=True,
                also=openapi.DEADLINE | _NO_MODEL,
            ),
        )
        routes.add_api_route(
            "/completions",
            self.completions,
            **openapi.route(
                Completion,
                body=CompletionBody,
                events=Completion,
                openai=True,
                also=openapi.DEADLINE | _NO_MODEL,
            ),
        )
        if self.status is not None:
            models = ModelRoutes(status=self.status, created=self.created)
            routes.include_router(models.router())
        return routes

    async def chat_completions(self, request: Request) -> Response:
        """Answers a conversation."""
        body = await self.read(request, ChatCompletionBody)
        body.check()
        head = await self._head("chatcmpl", body)
        # In a thread, since a formatter may be the user's own and take its time.
        messages = body.conversation()
        prompt = await asyncio.to_thread(Rendered.by, self.formatter, messages)
        wanted = body.to_requests(prompt, ORIGIN.get())
        answers = [chunks_of(self.generator, one) for one in wanted]
        if body.stream:
            return EventStream(chat_events(head, interleaved(answers)))
        whole = await unless_client_leaves(request.receive, all_finished(answers))
        return json_response(chat_completion(head, whole))

    async def completions(self, request: Request) -> Response:
        """Continues a text."""
        body = await self.read(request, CompletionBody)
        body.check()
        head = await self._head("cmpl", body)
        echo = await asyncio.to_thread(self._echo, body) if body.echo else None
        wanted = body.to_requests(body.prompt, ORIGIN.get())
        answers = [chunks_of(self.generator, one) for one in wanted]
        if body.stream:
            return EventStream(text_events(head, interleaved(answers), echo))
        whole = await unless_client_leaves(request.receive, all_finished(answers))
        return json_response(text_completion(head, whole, echo))

    def _echo(self, body: CompletionBody) -> Echo:
        if self.tokenizer is None:
            raise invalid("echo", "allowed is false, since there is no tokenizer here")
        if isinstance(body.prompt, str):
            ids = self.tokenizer.encode(body.prompt)
            return Echo(body.prompt, self.tokenizer.token_bytes(ids[0]) if ids else b"")
        size = self.tokenizer.vocab_size
        if any(token >= size for token in body.prompt):
            raise invalid("prompt", f"allowed are ids below {size}")
        text = self.tokenizer.decode(body.prompt)
        return Echo(text, self.tokenizer.token_bytes(body.prompt[0]))

    async def _head(self, kind: str, body: OpenAIBody) -> Head:
        return Head(
            id=f"{kind}-{uuid.uuid4().hex}",
            created=int(time.time()),
            model=self._served_name(body.model),
            fingerprint=await self._fingerprint(),
            include_usage=body.include_usage,
        )

    async def _fingerprint(self) -> str | None:
        """In a thread, since it may have to wait until the model's files are read."""
        if self.status is None:
            return None
        return await asyncio.to_thread(self.status.fingerprint)

    def _served_name(self, asked: str | None) -> str:
        if self.status is None:
            return asked or _NO_NAME
        served = self.status.model_name
        if asked not in {None, served}:
            raise _unknown_model(served)
        return served


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelRoutes:
    """Lists the one model that is served."""

    status: ServerStatus
    created: int

    def router(self) -> APIRouter:
        routes = APIRouter()
        routes.add_api_route(
            "/models", self.models, **openapi.route(ServedModels, openai=True)
        )
        routes.add_api_route(
            "/models/{name:path}",
            self.model,
            **openapi.route(ServedModel, openai=True, also=_NO_MODEL),
        )
        return routes

    async def models(self) -> Response:
        """The served model, in a list."""
        check_ready(self.status)
        return json_response(ServedModels(object="list", data=[self._served()]))

    async def model(self, name: str) -> Response:
        """The served model, by its name."""
        check_ready(self.status)
        served = self._served()
        if name != served.id:
            raise _unknown_model(served.id)
        return json_response(served)

    def _served(self) -> ServedModel:
        return ServedModel(
            id=self.status.model_name,
            object="model",
            created=self.created,
            owned_by="jaxserver",
        )


def _unknown_model(served: str) -> Refused:
    return Refused(
        Failure(
            status=404,
            code="model_not_found",
            message=f"model: allowed is {served}, the one that is served",
            field="model",
        )
    )
