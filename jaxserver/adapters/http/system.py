"""Routes about the server itself, and its tokenizer."""

import asyncio
import dataclasses
from typing import Literal

import pydantic
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from jaxserver.adapters.http import openapi
from jaxserver.adapters.http.body import BodyReader, invalid
from jaxserver.adapters.http.errors import Failure, Refused
from jaxserver.adapters.http.wire import TokenId, WireModel, json_response
from jaxserver.ports.errors import EngineFailed, NotReady
from jaxserver.ports.status import ServerStatus, StatusSnapshot
from jaxserver.ports.tokenizer import Tokenizer

_RETRY_AFTER_SECONDS = 5
_SNAPSHOT = pydantic.TypeAdapter(StatusSnapshot)


class Yes(pydantic.BaseModel):
    status: Literal["ok"]


class TokenizeBody(WireModel):
    """A text; special tokens of the tokenizer's settings are added unless refused."""

    text: str
    add_special_tokens: bool | None = True


class Tokens(pydantic.BaseModel):
    tokens: list[int]
    count: int


class DetokenizeBody(WireModel):
    tokens: list[TokenId]


class Text(pydantic.BaseModel):
    text: str


def check_ready(status: ServerStatus) -> None:
    """Refuses while requests are not taken.

    Raises:
        NotReady: The server is in any other state.
    """
    if not status.is_ready():
        state = status.snapshot().state.value
        raise NotReady(f"the server is not ready but {state}", _RETRY_AFTER_SECONDS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StatusRoutes:
    """Says how the server is doing."""

    status: ServerStatus

    def router(self) -> APIRouter:
        routes = APIRouter()
        routes.add_api_route(
            "/status", self.show_status, **openapi.route(StatusSnapshot)
        )
        routes.add_api_route("/health", self.health, **openapi.route(Yes))
        routes.add_api_route("/ready", self.ready, **openapi.route(Yes))
        return routes

    async def show_status(self) -> Response:
        """Everything there is to know about the server at this moment."""
        snapshot = self.status.snapshot()
        # Mappings may be of kinds that the library cannot write; dicts it can.
        plain = dataclasses.replace(
            snapshot, config=dict(snapshot.config), memory=dict(snapshot.memory)
        )
        return Response(_SNAPSHOT.dump_json(plain), media_type="application/json")

    async def health(self) -> Response:
        """Does the engine, once started, still run."""
        if not self.status.is_alive():
            raise Refused(
                Failure(
                    status=503,
                    code=EngineFailed.code,
                    message="the engine does not run any more",
                )
            )
        return json_response(Yes(status="ok"))

    async def ready(self) -> Response:
        """Are requests taken."""
        check_ready(self.status)
        return json_response(Yes(status="ok"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerRoutes:
    """Turns text into token ids and back, as the model's requests do."""

    tokenizer: Tokenizer
    read: BodyReader

    def router(self) -> APIRouter:
        routes = APIRouter()
        routes.add_api_route(
            "/tokenize", self.tokenize, **openapi.route(Tokens, body=TokenizeBody)
        )
        routes.add_api_route(
            "/detokenize", self.detokenize, **openapi.route(Text, body=DetokenizeBody)
        )
        return routes

    async def tokenize(self, request: Request) -> Response:
        """Token ids of a text."""
        body = await self.read(request, TokenizeBody)
        ids = await asyncio.to_thread(
            self.tokenizer.encode,
            body.text,
            add_special_tokens=body.add_special_tokens is not False,
        )
        return json_response(Tokens(tokens=ids, count=len(ids)))

    async def detokenize(self, request: Request) -> Response:
        """The text that token ids stand for."""
        body = await self.read(request, DetokenizeBody)
        size = self.tokenizer.vocab_size
        if any(token >= size for token in body.tokens):
            raise invalid("tokens", f"allowed are ids below {size}")
        text = await asyncio.to_thread(self.tokenizer.decode, body.tokens)
        return json_response(Text(text=text))
