import asyncio
import threading
from collections.abc import Mapping

import pytest

from jaxserver.adapters.http.handler_pool import HandlerPool
from jaxserver.ports.errors import ServerFull
from jaxserver.ports.handlers import CANCEL, Answer


def test_a_handler_runs_in_a_thread_of_the_pool() -> None:
    def handler(body: str) -> Mapping[str, object]:
        return {"body": body, "thread": threading.current_thread().name}

    answer = asyncio.run(HandlerPool(1).run(handler, "b"))

    assert answer["body"] == "b"
    assert str(answer["thread"]).startswith("jaxserver-handler")
    assert CANCEL.get() is None


def test_one_handler_more_than_threads_is_refused() -> None:
    begun = threading.Barrier(3)

    def handler(body: str) -> Answer:
        cancel = CANCEL.get()
        assert cancel is not None
        begun.wait(20)
        assert cancel.wait(20)
        return {"body": body}

    async def fill() -> None:
        pool = HandlerPool(2)
        running = [asyncio.create_task(pool.run(handler, str(i))) for i in range(2)]
        await asyncio.to_thread(begun.wait, 20)
        with pytest.raises(ServerFull):
            await pool.run(handler, "3")
        pool.close()
        assert await asyncio.gather(*running) == [{"body": "0"}, {"body": "1"}]

    asyncio.run(fill())


def test_a_cancelled_handler_keeps_its_thread_until_it_ends() -> None:
    begun, release = threading.Event(), threading.Event()

    def handler(body: str) -> Answer:
        begun.set()
        assert release.wait(20)
        return {}

    async def cancel_one() -> None:
        pool = HandlerPool(1)
        task = asyncio.create_task(pool.run(handler, "b"))
        assert await asyncio.to_thread(begun.wait, 20)
        task.cancel()
        await asyncio.wait({task})
        with pytest.raises(ServerFull):
            await pool.run(handler, "c")
        release.set()
        while pool.is_busy:
            await asyncio.sleep(0.005)
        assert await pool.run(handler, "d") == {}

    asyncio.run(cancel_one())
