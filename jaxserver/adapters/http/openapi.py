"""Describes the routes in `/openapi.json` by the models that serve them."""

from collections.abc import Set
from typing import Any

import fastapi
import pydantic
from starlette.responses import JSONResponse, Response

from jaxserver.adapters.http.errors import ErrorBody, OpenAIErrorBody
from jaxserver.adapters.http.sse import DONE

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
_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "basic": {"type": "http", "scheme": "basic"},
}
DEADLINE = {504: "The answer was not finished within `deadline_seconds`."}


def route(
    answer: Any = None,
    *,
    body: type[pydantic.BaseModel] | None = None,
    events: Any = None,
    openai: bool = False,
    media: str | None = None,
    also: dict[int, str] | None = None,
) -> dict[str, Any]:
    """Arguments of `add_api_route` that describe what a route takes and gives.

    An answer that is no JSON is described by its `media` type alone; `events` is the
    form of a stream's events, errors aside.
    """
    form = OpenAIErrorBody if openai else ErrorBody
    errors = {**_ERRORS, **(_BODY_ERRORS if body else {}), **(also or {})}
    responses: dict[int | str, dict[str, Any]] = {
        status: {"model": form, "description": text} for status, text in errors.items()
    }
    responses["default"] = {"model": form, "description": "Any other error."}
    if media is None:
        streamed = {} if events is None else _streamed(events | form)
        responses[200] = {"model": answer, "content": streamed}
    else:
        responses[200] = {"content": {media: {"schema": {"type": "string"}}}}
    return {
        "response_class": JSONResponse if media is None else Response,
        "methods": ["GET" if body is None else "POST"],
        "responses": responses,
        "openapi_extra": {} if body is None else {"requestBody": _request_body(body)},
    }


class DescribedApp(fastapi.FastAPI):
    """Describes itself.

    Attributes:
        open_paths: All others want the key; None where there is no key.
    """

    open_paths: Set[str] | None = None

    def openapi(self) -> dict[str, Any]:
        is_new = self.openapi_schema is None
        description = super().openapi()
        if not is_new:
            return description
        description.update(_exact(description))
        if self.open_paths is not None:
            description["components"]["securitySchemes"] = _SCHEMES
            description["security"] = [{name: []} for name in _SCHEMES]
            for path in self.open_paths & description["paths"].keys():
                for operation in description["paths"][path].values():
                    operation["security"] = []
        return description


def _exact(part: Any) -> Any:
    """Whole numbers as such: as floats, the framework's form, long ones are rounded."""
    if isinstance(part, float) and part.is_integer():
        return int(part)
    if isinstance(part, list):
        return [_exact(each) for each in part]
    if isinstance(part, dict):
        return {key: _exact(value) for key, value in part.items()}
    return part


def _streamed(forms: Any) -> dict[str, Any]:
    """A stream of events, whose data is JSON of one of the forms or says it is over."""
    schema = pydantic.TypeAdapter(forms).json_schema(mode="serialization")
    definitions = schema.pop("$defs", {})
    data = {
        "type": "string",
        "contentMediaType": "application/json",
        "contentSchema": _inlined(schema, definitions),
    }
    event = {
        "type": "object",
        "required": ["data"],
        "properties": {"data": {"anyOf": [{"const": DONE}, data]}},
    }
    return {"text/event-stream": {"itemSchema": event}}


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
