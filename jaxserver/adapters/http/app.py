"""Puts the routes together into one application."""

import contextlib
import importlib.metadata
from collections.abc import AsyncIterator, Iterator

import fastapi
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from jaxserver.adapters.http.auth import OPEN_PATHS, ApiKeyGate
from jaxserver.adapters.http.body import BodyReader, invalid
from jaxserver.adapters.http.disconnect import ClientLeft
from jaxserver.adapters.http.errors import Refused, error_json, failure_of
from jaxserver.adapters.http.handler_pool import HandlerPool
from jaxserver.adapters.http.openai import OpenAIRoutes
from jaxserver.adapters.http.openapi import DescribedApp
from jaxserver.adapters.http.original import OriginalRoutes
from jaxserver.adapters.http.request_id import RequestIds, name_header
from jaxserver.adapters.http.scope import route_path
from jaxserver.adapters.http.system import StatusRoutes, TokenizerRoutes
from jaxserver.adapters.http.watching import MetricsRoutes, ProfileRoutes
from jaxserver.ports.errors import JaxServerError, NotReady
from jaxserver.ports.generator import Generator
from jaxserver.ports.handlers import Handlers
from jaxserver.ports.metrics import Metrics
from jaxserver.ports.profiling import Profiler
from jaxserver.ports.prompt import PromptFormatter
from jaxserver.ports.status import ServerStatus
from jaxserver.ports.tokenizer import Tokenizer

HANDLER_THREADS = 32
MAX_BODY_BYTES = 8 * 2**20
_CLIENT_CLOSED_REQUEST = 499


def create_app(  # noqa: PLR0913  # one name for each port and limit
    generator: Generator,
    formatter: PromptFormatter,
    *,
    instruct_formatter: PromptFormatter | None = None,
    tokenizer: Tokenizer | None = None,
    status: ServerStatus | None = None,
    metrics: Metrics | None = None,
    profiler: Profiler | None = None,
    handlers: Handlers | None = None,
    api_key: str | None = None,
    truncate_prompts: bool = True,
    handler_threads: int = HANDLER_THREADS,
    max_body_bytes: int = MAX_BODY_BYTES,
) -> fastapi.FastAPI:
    """Builds an application that runs alone, or mounted in another one.

    Args:
        generator: Answers the requests.
        formatter: Writes conversations down.
        instruct_formatter: Writes `/instruct` down, where that is done otherwise.
        tokenizer: Brings `/tokenize` and `/detokenize`.
        status: Brings `/status`, `/health`, `/ready` and `/v1/models`.
        metrics: Brings `/metrics`.
        profiler: Brings `/profile`.
        handlers: Functions that answer `/instruct` and `/chat` instead.
        api_key: Wanted by everything but `/health` and `/ready`.
        truncate_prompts: Cut prompts that are too long on `/instruct` and `/chat`.
        handler_threads: How many handlers may run at once.
        max_body_bytes: A larger body is refused.
    """
    pool = HandlerPool(handler_threads)
    read = BodyReader(max_bytes=max_body_bytes)
    app = _bare_app(pool)
    if api_key is not None:
        app.add_middleware(ApiKeyGate, api_key=api_key)
        app.open_paths = OPEN_PATHS
    app.add_middleware(RequestIds)
    original = OriginalRoutes(
        generator=generator,
        formatter=formatter,
        instruct_formatter=instruct_formatter or formatter,
        handlers=handlers or Handlers(),
        pool=pool,
        read=read,
        truncate_prompts=truncate_prompts,
    )
    openai = OpenAIRoutes(
        generator=generator,
        formatter=formatter,
        tokenizer=tokenizer,
        status=status,
        read=read,
    )
    beside = _beside(status, metrics, profiler, tokenizer, read)
    for routes in (original.router(), openai.router(), *beside):
        app.include_router(routes)
    return app


def _beside(
    status: ServerStatus | None,
    metrics: Metrics | None,
    profiler: Profiler | None,
    tokenizer: Tokenizer | None,
    read: BodyReader,
) -> Iterator[fastapi.APIRouter]:
    """The routes that come with a port."""
    if status is not None:
        yield StatusRoutes(status=status).router()
    if metrics is not None:
        yield MetricsRoutes(metrics=metrics).router()
    if profiler is not None:
        yield ProfileRoutes(profiler=profiler, read=read).router()
    if tokenizer is not None:
        yield TokenizerRoutes(tokenizer=tokenizer, read=read).router()


def _bare_app(pool: HandlerPool) -> DescribedApp:
    @contextlib.asynccontextmanager
    async def lifespan(_: fastapi.FastAPI) -> AsyncIterator[None]:
        yield
        pool.close()

    app = DescribedApp(
        title="jaxserver",
        version=importlib.metadata.version("jaxserver"),
        lifespan=lifespan,
        # The pages of the framework load their scripts from another host.
        docs_url=None,
        redoc_url=None,
    )
    for kind in (JaxServerError, Refused, HTTPException, Exception):
        app.add_exception_handler(kind, _answer_error)
    app.add_exception_handler(RequestValidationError, _answer_validation_error)
    for kind in (ClientLeft, ClientDisconnect):
        app.add_exception_handler(kind, _answer_nobody)
    return app


async def _answer_error(request: Request, error: Exception) -> Response:
    path = route_path(request.scope)
    if isinstance(error, NotReady) and path in {"/instruct", "/chat"}:
        return JSONResponse({"status": "down"})
    failure = failure_of(error, path)
    return Response(
        error_json(failure, path),
        failure.status,
        headers={**failure.headers, **name_header(request.scope)},
        media_type="application/json",
    )


async def _answer_validation_error(request: Request, error: Exception) -> Response:
    """Names the parameter; the framework's own answer would repeat what was sent."""
    details = error.errors() if isinstance(error, RequestValidationError) else []
    field = ".".join(str(part) for part in details[0]["loc"]) if details else "request"
    return await _answer_error(request, invalid(field, "not what is allowed here"))


async def _answer_nobody(_request: Request, _error: Exception) -> Response:
    return Response(status_code=_CLIENT_CLOSED_REQUEST)
