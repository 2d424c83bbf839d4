"""The page is told how things stand, even while nothing happens."""

import asyncio

import pytest

from jaxserver.adapters.gradio_ui.updates import Update, Updates, watched


async def _two(pause_seconds: float, log: list[str]) -> Updates[str]:
    log.append("begun")
    try:
        await asyncio.sleep(pause_seconds)
        yield Update(shown="a")
        await asyncio.sleep(pause_seconds)
        yield Update(shown="ab")
    finally:
        log.append("closed")


def test_the_last_update_is_repeated_while_nothing_happens() -> None:
    shown: list[str] = []
    was_repeated = asyncio.Event()

    async def source() -> Updates[str]:
        for text in ("a", "ab"):
            await was_repeated.wait()
            was_repeated.clear()
            yield Update(shown=text)

    async def watch() -> None:
        async for update in watched(source(), Update(shown=""), every_seconds=0.01):
            shown.append(update.shown)
            if shown.count(update.shown) == 3:
                was_repeated.set()

    asyncio.run(asyncio.wait_for(watch(), 20))
    assert list(dict.fromkeys(shown)) == ["", "a", "ab"]
    assert shown.count("") >= 3
    assert shown.count("a") >= 3
    assert shown.count("ab") == 1


@pytest.mark.parametrize("num_read", [1, 2])
def test_closing_in_the_middle_closes_the_source(num_read: int) -> None:
    log: list[str] = []

    async def leave() -> None:
        updates = watched(_two(60, log), Update(shown=""), every_seconds=0.01)
        for _ in range(num_read):
            await anext(updates)
        await updates.aclose()

    asyncio.run(leave())
    # What never began need not be closed.
    assert log == ["begun", "closed"] * (num_read - 1)


def test_cancelling_the_reader_closes_the_source() -> None:
    log: list[str] = []

    async def read() -> None:
        async for _ in watched(_two(60, log), Update(shown="")):
            pass

    async def cancel() -> None:
        reader = asyncio.create_task(read())
        while not log:
            await asyncio.sleep(0)
        reader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reader

    asyncio.run(cancel())
    assert log == ["begun", "closed"]


def test_an_error_of_the_source_reaches_the_reader() -> None:
    async def broken() -> Updates[str]:
        yield Update(shown="a")
        raise ValueError("broken")

    async def read() -> None:
        async for _ in watched(broken(), Update(shown="")):
            pass

    with pytest.raises(ValueError, match="broken"):
        asyncio.run(read())
