"""Reads a request's body: bounded, strict, and naming what is wrong."""

import asyncio
import collections
import dataclasses
import json
from typing import Any, TypeVar

import pydantic
from pydantic_core import ErrorDetails
from starlette.requests import Request

from jaxserver.adapters.http.errors import Failure, Refused

Model = TypeVar("Model", bound=pydantic.BaseModel)

_WHOLE_BODY = "body"
_MAX_NAME_LENGTH = 100
_LONG_BODY_BYTES = 64 * 2**10


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BodyReader:
    """Takes JSON bodies of at most `max_bytes`."""

    max_bytes: int

    async def __call__(self, request: Request, model: type[Model]) -> Model:
        """Reads and checks a body.

        Raises:
            Refused: It is too large, not JSON, or not what the model describes.
        """
        _check_content_type(request)
        body = await self._read(request)
        if len(body) > _LONG_BODY_BYTES:  # the streams go on meanwhile
            return await asyncio.to_thread(parse, model, body)
        return parse(model, body)

    async def _read(self, request: Request) -> bytes:
        declared = request.headers.get("content-length", "")
        # A float, since an int of thousands of digits is an error of its own.
        if declared.isdecimal() and float(declared) > self.max_bytes:
            raise self._too_large()
        body = bytearray()
        async for piece in request.stream():
            body += piece
            if len(body) > self.max_bytes:
                raise self._too_large()
        return bytes(body)

    def _too_large(self) -> Refused:
        message = f"the body is too large, allowed are {self.max_bytes} bytes"
        return Refused(
            Failure(
                status=413,
                code="body_too_large",
                message=message,
                field=_WHOLE_BODY,
            )
        )


def parse(model: type[Model], body: bytes) -> Model:
    """Checks a JSON body against a model.

    Raises:
        Refused: Bad JSON (NaN, lone surrogates and deep nesting too), a name that is
            given twice, or a value that the model does not take.
    """
    try:
        value = model.model_validate_json(body)
    except pydantic.ValidationError as error:
        details = error.errors(
            include_url=False, include_context=False, include_input=False
        )
        raise _refused(details[0]) from None
    json.loads(body, object_pairs_hook=_refuse_repeated_names)
    return value


def invalid(field: str, message: str) -> Refused:
    """The refusal of one field."""
    return Refused(
        Failure(
            status=400,
            code="invalid_request",
            message=f"{field}: {message}",
            field=field,
        )
    )


def _check_content_type(request: Request) -> None:
    """Takes JSON alone, so that a foreign web page cannot post without being asked.

    Simple clients name no type at all, which a browser does too for a blob without
    one; but a browser says where its page comes from.
    """
    content_type = request.headers.get("content-type")
    if content_type is None and "origin" not in request.headers:
        return
    essence = (content_type or "").partition(";")[0].strip().lower()
    if essence == "application/json" or essence.endswith("+json"):
        return
    raise Refused(
        Failure(
            status=415,
            code="unsupported_media_type",
            message="Content-Type: allowed is application/json",
            field="Content-Type",
        )
    )


def _refused(detail: ErrorDetails) -> Refused:
    # "[key]" says that a name of an object is wrong, which the path ends with anyway.
    path = [str(part) for part in detail["loc"] if part != "[key]"]
    field = ".".join(path)[:_MAX_NAME_LENGTH] or _WHOLE_BODY
    if detail["type"] == "extra_forbidden":
        return invalid(field, "unknown here; allowed is to leave it out")
    return invalid(field, detail["msg"])


def _refuse_repeated_names(pairs: list[tuple[str, Any]]) -> None:
    counts = collections.Counter(name for name, _ in pairs)
    if len(counts) < len(pairs):
        name, _ = counts.most_common(1)[0]
        raise invalid(name[:_MAX_NAME_LENGTH], "given more than once")
