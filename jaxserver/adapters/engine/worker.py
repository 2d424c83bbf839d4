"""The threads that run the steps of one lane, and what they have been given."""

import collections
import functools
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, TypeAlias, TypeVar

import jax

from jaxserver.adapters.engine.dispatch import Device, Dispatch
from jaxserver.adapters.engine.orders import Order
from jaxserver.core.schedule import Plan

Returned = TypeVar("Returned")
Call: TypeAlias = tuple[Callable[[], Any], Future[Any]]
OnArrival: TypeAlias = Callable[[Dispatch], None]
AHEAD = 2
"""Dispatches under way at most: one is run, and the next is there when it ends."""


class Worker:
    """How the engine's thread lets one lane work.

    Steps that one thread hands to a device wait for each other (CPU), so that each lane
    has a thread that does so, and one that waits for what comes of them.

    Attributes:
        device: Only the first of these threads runs anything on it.
        in_flight: What has not been read, the oldest first.
        began_seconds: When it has begun with the oldest, at the latest.
    """

    def __init__(self, device: Device) -> None:
        """Prepares the threads; `start` lets them run."""
        self.device = device
        self.in_flight: collections.deque[Dispatch] = collections.deque()
        self.began_seconds: float | None = None
        self._calls: queue.SimpleQueue[Call | None] = queue.SimpleQueue()
        self._started: queue.SimpleQueue[Dispatch | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []

    @property
    def has_room(self) -> bool:
        return len(self.in_flight) < AHEAD

    @property
    def request_ids(self) -> tuple[int, ...]:
        """Of what is in flight."""
        return tuple(i for x in self.in_flight for i in x.plan.request_ids)

    def start(self, on_arrival: OnArrival) -> None:
        """Lets the threads run; `on_arrival` is called on one of them."""
        for run in (self._call, functools.partial(self._wait, on_arrival)):
            thread = threading.Thread(target=run, name="jaxserver-worker", daemon=True)
            self._threads.append(thread)
            thread.start()

    def end(self) -> None:
        """Lets the threads end when all that was begun is done."""
        self._calls.put(None)

    def join(self) -> None:
        """Waits until they have ended."""
        for thread in self._threads:
            thread.join()
        self.forget()

    def dispatch(self, plan: Plan, orders: Sequence[Order], now: float) -> None:
        """Lets the device run what was ordered, after all that was before."""
        outcome = self._later(lambda: self.device.run(orders))
        dispatch = Dispatch(plan=plan, outcome=outcome)
        if not self.in_flight:
            self.began_seconds = now
        self.in_flight.append(dispatch)
        self._later(lambda: self._started.put(dispatch))

    def has_read(self, now: float) -> None:
        """The oldest of what is in flight is done."""
        self.in_flight.popleft()
        self.began_seconds = now if self.in_flight else None

    def forget(self) -> None:
        """Nobody reads what is in flight any more."""
        self.in_flight.clear()
        self.began_seconds = None

    def call(self, run: Callable[[], Returned]) -> Returned:
        """Waits until the device's thread has called something; raises what it did."""
        return self._later(run).result()

    def let(self, run: Callable[[], Returned], returned: Future[Returned]) -> None:
        """Lets the device's thread call something, whose end the future hears of."""
        self._calls.put((run, returned))

    def _later(self, run: Callable[[], Returned]) -> Future[Returned]:
        returned: Future[Returned] = Future()
        self.let(run, returned)
        return returned

    def _call(self) -> None:
        while (call := self._calls.get()) is not None:
            run, returned = call
            try:
                returned.set_result(run())
            except Exception as error:  # whoever asked hears of it
                returned.set_exception(error)
            # The error knows this frame, and would keep itself and a state in memory.
            del call, run, returned
        self._started.put(None)

    def _wait(self, on_arrival: OnArrival) -> None:
        while (dispatch := self._started.get()) is not None:
            if dispatch.outcome.exception() is None:
                _wait_for(dispatch)
            on_arrival(dispatch)


def _wait_for(dispatch: Dispatch) -> None:
    """Returns when it is there, or has failed, which whoever reads it will see."""
    try:
        jax.block_until_ready(dispatch.outcome.result())
    except Exception:  # raised again where it is read
        return
