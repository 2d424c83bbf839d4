"""The engine's thread: it alone owns the scheduler's state and the device's."""

import collections
import contextlib
import dataclasses
import logging
import queue
import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

from jaxserver.adapters.engine.dispatch import Device, Dispatch, read
from jaxserver.adapters.engine.requests import TokenEvent, TokenRequest
from jaxserver.core import scheduler
from jaxserver.core.config import EngineConfig
from jaxserver.core.pages import PagePool
from jaxserver.ports.errors import EngineFailed
from jaxserver.ports.types import FinishReason

LOGGER = logging.getLogger("jaxserver")
OnEvents: TypeAlias = Callable[[Sequence[TokenEvent]], None]


class Submit(NamedTuple):
    request: TokenRequest


class Cancel(NamedTuple):
    request_id: int


class Stop(NamedTuple):
    pass


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LoopStats:
    """Counts that other threads may read at any time."""

    dispatches: int = 0
    slots_in_use: int = 0
    queue_length: int = 0


class EngineLoop:
    """Runs requests of token ids, many at a time, on one thread."""

    def __init__(
        self,
        device: Device,
        engine: EngineConfig,
        on_events: OnEvents,
        clock: Callable[[], float],
    ) -> None:
        """Prepares the thread; `start` lets it run.

        Args:
            device: What the steps run on.
            engine: The sizes.
            on_events: Called on the thread once a dispatch; must not block.
            clock: Seconds from any origin.
        """
        self.stats = LoopStats()
        self._device = device
        self._engine = engine
        self._on_events = on_events
        self._clock = clock
        self._commands: queue.SimpleQueue[Submit | Cancel | Stop] = queue.SimpleQueue()
        self._requests: dict[int, TokenRequest] = {}
        self._state = scheduler.SchedulerState(pool=PagePool.empty(engine.slots))
        self._in_flight: collections.deque[Dispatch] = collections.deque()
        self._last_read_seconds = 0.0
        self._is_stopped = False
        self._is_closed = False
        self._submitting = threading.Lock()
        self._thread = threading.Thread(
            target=self._run, name="jaxserver-engine", daemon=True
        )

    def start(self) -> None:
        self._thread.start()

    def is_alive(self) -> bool:
        return self._thread.is_alive() and not self._is_closed

    def submit(self, request: TokenRequest) -> None:
        """Queues the request, which fails at once where the thread has ended."""
        with self._submitting:
            if not self._is_closed:
                self._commands.put(Submit(request))
                return
        self._report_failure(request.request_id, "the engine does not run any more")

    def cancel(self, request_id: int) -> None:
        """Releases the request at the next plan; unknown ones are no matter.

        It takes no lock, so that a stream may call it while it is collected.
        """
        self._commands.put(Cancel(request_id))

    def stop(self, timeout_seconds: float = 10.0) -> None:
        """Ends the thread; requests that are still open fail."""
        self._commands.put(Stop())
        if self._thread.is_alive():
            self._thread.join(timeout_seconds)

    def _run(self) -> None:
        reason = "the engine does not run any more"
        try:
            while not self._is_stopped:
                self._turn()
            self._device.orders.dismiss()
            reason = "the engine was stopped"
        except Exception:
            LOGGER.exception("the engine's thread has failed")
        finally:
            with self._submitting:
                self._is_closed = True
            self._fail(list(self._requests), reason)
            self._refuse_commands(reason)

    def _turn(self) -> None:
        """Takes commands, keeps one dispatch ahead, reads the oldest outcome."""
        is_busy = self._state.waiting or self._state.running or self._in_flight
        self._take_commands(wait=not is_busy)
        plan, self._state = scheduler.plan(self._state, self._engine)
        try:
            if plan is not None:
                self._in_flight.append(self._dispatch(plan))
            if len(self._in_flight) > 1 or (plan is None and self._in_flight):
                self._read(self._in_flight.popleft())
        except Exception as error:  # whatever a dispatch raises
            self._recover(error)

    def _take_commands(self, *, wait: bool) -> None:
        """Applies what has come; where `wait`, until something has.

        Other processes hear from this one even when nothing comes.
        """
        orders = self._device.orders
        try:
            command = self._commands.get(block=wait, timeout=orders.idle_seconds)
        except queue.Empty:
            if wait:
                orders.say_nothing()
        else:
            self._apply(command)
            with contextlib.suppress(queue.Empty):
                while True:
                    self._apply(self._commands.get_nowait())
        self._count()

    def _apply(self, command: Submit | Cancel | Stop) -> None:
        if isinstance(command, Stop):
            self._is_stopped = True
        elif isinstance(command, Cancel):
            self._cancel(command.request_id)
        else:
            request = command.request
            self._requests[request.request_id] = request
            queued = scheduler.QueuedRequest(
                request_id=request.request_id,
                prompt_length=len(request.prompt),
                streaming=request.streaming,
            )
            self._state = scheduler.submit(self._state, queued)

    def _cancel(self, request_id: int) -> None:
        if self._requests.pop(request_id, None) is None:
            return
        self._state = scheduler.release(self._state, [request_id])
        end = FinishReason.CANCELLED
        self._on_events([TokenEvent(request_id=request_id, end=end)])

    def _dispatch(self, plan: scheduler.PrefillPlan | scheduler.DecodePlan) -> Dispatch:
        now = self._clock()
        self._count(dispatched=1)
        if isinstance(plan, scheduler.DecodePlan):
            return self._device.decode(plan, now)
        begun = [c.request_id for c in plan.chunks if c.start == 0]
        self._on_events([TokenEvent(request_id=i, is_admitted=True) for i in begun])
        return self._device.prefill(plan, self._requests, now)

    def _read(self, dispatch: Dispatch) -> None:
        events, num_steps = read(dispatch, self._requests)
        now = self._clock()
        seconds = now - max(dispatch.started_seconds, self._last_read_seconds)
        self._last_read_seconds = now
        finished = frozenset(e.request_id for e in events if e.end is not None)
        for request_id in finished:
            del self._requests[request_id]
        outcome = scheduler.Outcome(
            finished=finished,
            steps=num_steps if dispatch.is_decode else 0,
            seconds=seconds,
        )
        self._state = scheduler.absorb(self._state, outcome)
        self._count()
        if events:
            self._on_events(events)

    def _recover(self, error: Exception) -> None:
        """A dispatch that fails has consumed the cache: what ran in it is lost.

        The requests hear of it last, when it is known whether the engine goes on.
        """
        LOGGER.error("a step has failed", exc_info=error)
        self._in_flight.clear()
        self._device.reset()
        running = [r.request.request_id for r in self._state.running]
        self._fail(running, f"a step failed: {type(error).__name__}")

    def _fail(self, request_ids: Sequence[int], reason: str) -> None:
        self._state = scheduler.release(self._state, request_ids)
        self._count()
        for request_id in request_ids:
            if self._requests.pop(request_id, None) is not None:
                self._report_failure(request_id, reason)

    def _refuse_commands(self, reason: str) -> None:
        while not self._commands.empty():
            command = self._commands.get()
            if isinstance(command, Submit):
                self._report_failure(command.request.request_id, reason)

    def _report_failure(self, request_id: int, reason: str) -> None:
        """Each reader gets an error of its own, since raising one writes into it."""
        self._on_events([TokenEvent(request_id=request_id, end=EngineFailed(reason))])

    def _count(self, dispatched: int = 0) -> None:
        self.stats = LoopStats(
            dispatches=self.stats.dispatches + dispatched,
            slots_in_use=len(self._state.running),
            queue_length=len(self._state.waiting),
        )
