"""The threads that run the steps of one lane, and what they have been given."""

import collections
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TypeAlias, TypeVar

import jax

from jaxserver.adapters.engine.dispatch import Device, Dispatch
from jaxserver.adapters.engine.orders import Order
from jaxserver.core.schedule import Plan

Found = TypeVar("Found")
OnArrival: TypeAlias = Callable[[Dispatch], None]
AHEAD = 2
"""Dispatches under way at most: one is run, and the next is there when it ends."""


class Worker:
    """How the engine's thread lets one lane work.

    Steps that one thread hands to a device wait for each other (CPU), so that each lane
    has a thread that does so, and one that waits for what comes of them.

    Attributes:
        device: Only the worker's threads call it, from `start` on.
        in_flight: What has not been read, the oldest first.
        began_seconds: When it has begun with the oldest, at the latest.
    """

    def __init__(self, device: Device) -> None:
        """Prepares the threads; `start` lets them run."""
        self.device = device
        self.in_flight: collections.deque[Dispatch] = collections.deque()
        self.began_seconds: float | None = None
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._started: queue.SimpleQueue[Dispatch | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []

    @property
    def has_room(self) -> bool:
        return len(self.in_flight) < AHEAD

    def start(self, on_arrival: OnArrival) -> None:
        """Lets the threads run; `on_arrival` is called on one of them."""
        for run, inputs in ((self._call, ()), (self._wait, (on_arrival,))):
            thread = threading.Thread(
                target=run, args=inputs, name="jaxserver-worker", daemon=True
            )
            self._threads.append(thread)
            thread.start()

    def stop(self) -> None:
        """Ends the threads when all that was begun is done."""
        self._calls.put(None)
        for thread in self._threads:
            thread.join()

    def dispatch(self, plan: Plan, orders: Sequence[Order], now: float) -> None:
        """Lets the device run what was ordered, after all that was before."""
        outcome = self._later(lambda: self.device.run(orders))
        dispatch = Dispatch(plan=plan, outcome=outcome, started_seconds=now)
        if not self.in_flight:
            self.began_seconds = now
        self.in_flight.append(dispatch)
        self._calls.put(lambda: self._started.put(dispatch))

    def read(self, now: float) -> float:
        """The oldest has been read; how long it has taken, in seconds."""
        dispatch, began = self.in_flight.popleft(), self.began_seconds or 0.0
        self.began_seconds = now if self.in_flight else None
        return now - max(dispatch.started_seconds, began)

    def forget(self) -> None:
        """Nobody reads what is in flight any more."""
        self.in_flight.clear()
        self.began_seconds = None

    def call(self, run: Callable[[], Found]) -> Found:
        """Waits until the device's thread has called something; raises what it did."""
        return self._later(run).result()

    def _later(self, run: Callable[[], Found]) -> Future[Found]:
        found: Future[Found] = Future()

        def call() -> None:
            try:
                found.set_result(run())
            except Exception as error:  # whoever asked hears of it
                found.set_exception(error)

        self._calls.put(call)
        return found

    def _call(self) -> None:
        while (call := self._calls.get()) is not None:
            call()
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
