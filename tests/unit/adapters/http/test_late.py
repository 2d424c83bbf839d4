"""Whoever asks for what is being mounted waits for it, and nobody else does."""

import asyncio
from concurrent.futures import Future

import httpx
import pytest
from starlette.responses import PlainTextResponse

from jaxserver.adapters.http.late import WaitsFor
from tests.unit.adapters.http.in_process import app_of

PATHS = frozenset({"/", "/page"})


async def asked(path: str, mounted: Future[None]) -> tuple[bool, int]:
    """Whether an answer had to be waited for, and its status."""
    app = app_of()
    app.add_middleware(WaitsFor, paths=PATHS, mounted=lambda: mounted)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        answer = asyncio.ensure_future(client.get(path))
        done, _ = await asyncio.wait({answer}, timeout=0.05)
        app.mount("/page", PlainTextResponse("here"))
        mounted.set_result(None)
        return not done, (await answer).status_code


@pytest.mark.parametrize(
    ("path", "status"), [("/page", 307), ("/page/", 200), ("/page/deep", 200)]
)
def test_a_page_is_waited_for(path: str, status: int) -> None:
    assert asyncio.run(asked(path, Future())) == (True, status)


@pytest.mark.parametrize(
    ("path", "status"), [("/health", 200), ("/pages", 404), ("/v1/page", 404)]
)
def test_nothing_else_is(path: str, status: int) -> None:
    assert asyncio.run(asked(path, Future())) == (False, status)


def test_what_could_not_be_mounted_is_an_error() -> None:
    failed: Future[None] = Future()
    app = app_of()
    app.add_middleware(WaitsFor, paths=PATHS, mounted=lambda: failed)

    async def ask() -> int:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(
            transport=transport, base_url="http://test"
        ) as client:
            answer = asyncio.ensure_future(client.get("/page"))
            await asyncio.sleep(0.02)
            failed.set_exception(ImportError("gradio"))
            return (await answer).status_code

    assert asyncio.run(ask()) == 500


def test_who_leaves_does_not_stop_the_others_from_getting_it() -> None:
    mounted: Future[None] = Future()

    async def leave() -> None:
        app = app_of()
        app.add_middleware(WaitsFor, paths=PATHS, mounted=lambda: mounted)
        scope = {"type": "http", "path": "/page", "headers": [], "method": "GET"}
        waiting = asyncio.ensure_future(app(scope, _nothing, _nowhere))
        await asyncio.sleep(0.02)
        waiting.cancel()
        await asyncio.wait({waiting})

    asyncio.run(leave())
    assert not mounted.cancelled()


async def _nothing() -> dict[str, str]:
    return {"type": "http.disconnect"}


async def _nowhere(message: object) -> None:
    return None
