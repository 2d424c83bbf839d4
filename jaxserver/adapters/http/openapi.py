"""Describes the routes in `/openapi.json` by the models that serve them."""

from typing import Any

import pydantic
from starlette.responses import JSONResponse, Response

from jaxserver.adapters.http.errors import ErrorBody, OpenAIErrorBody

_ERRORS = {
    401: "The API key is missing or wrong.",
    500: "The engine failed.",
    503: "The model is not ready.",
}
_BODY_ERRORS = {
    400: "The request is wrong; a field is named.",
    413: "The body is too large.",
    415: "The body is not JSON.",
    429: "The queue is full.",
}
_EVENTS = {"text/event-stream": {"schema": {"type": "string"}}}


def route(
    answer: Any = None,
    *,
    body: type[pydantic.BaseModel] | None = None,
    streams: bool = False,
    openai: bool = False,
    media: str | None = None,
    also: dict[int, str] | None = None,
) -> dict[str, Any]:
    """Arguments of `add_api_route` that describe what a route takes and gives.

    An answer that is no JSON is described by its `media` type alone.
    """
    form = OpenAIErrorBody if openai else ErrorBody
    errors = {**_ERRORS, **(_BODY_ERRORS if body else {}), **(also or {})}
    responses: dict[int | str, dict[str, Any]] = {
        status: {"model": form, "description": text} for status, text in errors.items()
    }
    responses["default"] = {"model": form, "description": "Any other error."}
    if media is None:
        responses[200] = {"model": answer, "content": _EVENTS if streams else {}}
    else:
        responses[200] = {"content": {media: {"schema": {"type": "string"}}}}
    return {
        "response_class": JSONResponse if media is None else Response,
        "methods": ["GET" if body is None else "POST"],
        "responses": responses,
        "openapi_extra": {} if body is None else {"requestBody": _request_body(body)},
    }


def _request_body(model: type[pydantic.BaseModel]) -> dict[str, Any]:
    schema = model.model_json_schema()
    definitions = schema.pop("$defs", {})
    content = {"application/json": {"schema": _inlined(schema, definitions)}}
    return {"required": True, "content": content}


def _inlined(schema: Any, definitions: dict[str, Any]) -> Any:
    """The schema without references, which would point outside of where it stands."""
    if isinstance(schema, list):
        return [_inlined(part, definitions) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _inlined(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    return {key: _inlined(part, definitions) for key, part in schema.items()}
