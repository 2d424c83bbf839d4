"""Turns every error into an answer in the form of the route it belongs to."""

import dataclasses
from collections.abc import Mapping

import pydantic
from starlette.exceptions import HTTPException

from jaxserver.ports.errors import (
    DeadlineExceeded,
    EngineFailed,
    InvalidRequest,
    JaxServerError,
    NoChatTemplate,
    ProfileRunning,
    PromptTooLong,
    ServerFull,
    Unavailable,
    UnsupportedMessages,
)

_HTTP_CODES = {404: "not_found", 405: "method_not_allowed"}
_OPENAI_FIELDS = {"max_new_tokens": "max_tokens", "score_prompt": "echo"}
_OPENAI_CODES = {PromptTooLong.code: "context_length_exceeded"}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why a request is not answered.

    Attributes:
        code: Stays the same from version to version.
        field: The part of the request that is wrong, if it is one.
    """

    status: int
    code: str
    message: str
    field: str | None = None
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)


class Refused(Exception):
    """The adapter itself refuses a request, before any port hears of it."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


class ErrorDetail(pydantic.BaseModel):
    code: str
    message: str
    field: str | None


class ErrorBody(pydantic.BaseModel):
    """An error, on every route but OpenAI's."""

    error: ErrorDetail


class OpenAIErrorDetail(pydantic.BaseModel):
    message: str
    type: str
    param: str | None
    code: str


class OpenAIErrorBody(pydantic.BaseModel):
    """An error in OpenAI's form."""

    error: OpenAIErrorDetail


def is_openai(path: str) -> bool:
    return path == "/v1" or path.startswith("/v1/")


def failure_of(error: Exception, path: str) -> Failure:
    """Says what an error means to the client of one route.

    It never repeats a value of the request: that may be a secret, or no JSON at all.
    """
    match error:
        case Refused():
            return error.failure
        case HTTPException():
            return _http_failure(error)
        case JaxServerError():
            return _port_failure(error, path)
        case _:
            return _unknown_failure()


def error_json(failure: Failure, path: str) -> str:
    """The error's body in the form of its route."""
    if not is_openai(path):
        detail = ErrorDetail(
            code=failure.code, message=failure.message, field=failure.field
        )
        return ErrorBody(error=detail).model_dump_json()
    kind = "invalid_request_error" if failure.status < 500 else "server_error"
    openai_detail = OpenAIErrorDetail(
        message=failure.message,
        type="rate_limit_error" if failure.status == 429 else kind,
        param=failure.field,
        code=_OPENAI_CODES.get(failure.code, failure.code),
    )
    return OpenAIErrorBody(error=openai_detail).model_dump_json()


def _port_failure(error: JaxServerError, path: str) -> Failure:
    match error:
        case InvalidRequest(field=field, allowed=allowed):
            field = _OPENAI_FIELDS.get(field, field) if is_openai(path) else field
            message = f"{field}: allowed is {allowed}"
            return Failure(status=400, code=error.code, message=message, field=field)
        case PromptTooLong() | UnsupportedMessages() | NoChatTemplate():
            field = "messages" if path.endswith("/chat/completions") else "prompt"
            return Failure(status=400, code=error.code, message=str(error), field=field)
        case Unavailable(retry_after_seconds=seconds):
            return Failure(
                status=429 if isinstance(error, ServerFull) else 503,
                code=error.code,
                message=str(error),
                headers={"Retry-After": str(seconds)},
            )
        case DeadlineExceeded():
            return Failure(status=504, code=error.code, message=str(error))
        case ProfileRunning():
            return Failure(status=409, code=error.code, message=str(error))
        case EngineFailed():
            return Failure(status=500, code=error.code, message=str(error))
        case _:
            return _unknown_failure()


def _http_failure(error: HTTPException) -> Failure:
    return Failure(
        status=error.status_code,
        code=_HTTP_CODES.get(error.status_code, "http_error"),
        message=str(error.detail),
        headers=error.headers or {},
    )


def _unknown_failure() -> Failure:
    return Failure(
        status=500, code="internal_error", message="the server failed; its log says why"
    )
