"""The engine's thread: it alone owns what the scheduler knows of each lane."""

import contextlib
import functools
import logging
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TypeAlias

from jaxserver.adapters.engine.commands import (
    Arrived,
    Bring,
    Cancel,
    Command,
    Look,
    Stop,
    Submit,
)
from jaxserver.adapters.engine.dispatch import (
    NOTHING,
    Arrival,
    Device,
    Dispatch,
    read,
)
from jaxserver.adapters.engine.loop_stats import LoopStats
from jaxserver.adapters.engine.requests import (
    NO_PAGES,
    KeptPages,
    TokenEvent,
    TokenRequest,
    queued_request,
)
from jaxserver.adapters.engine.worker import Worker
from jaxserver.core import lanes, scheduler
from jaxserver.core.config import EngineConfig
from jaxserver.core.prefix_tree import Tokens
from jaxserver.core.schedule import DecodePlan, Outcome, Plan
from jaxserver.ports.errors import DeadlineExceeded, EngineFailed, JaxServerError
from jaxserver.ports.types import FinishReason

LOGGER = logging.getLogger("jaxserver")
OnEvents: TypeAlias = Callable[[Sequence[TokenEvent]], None]


class EngineLoop:
    """Runs requests of token ids, many at a time; one thread decides all of it."""

    def __init__(
        self,
        devices: Sequence[Device],
        engine: EngineConfig,
        on_events: OnEvents,
        clock: Callable[[], float],
        watchdog_seconds: float,
    ) -> None:
        """Prepares the thread; `start` lets it run.

        Args:
            devices: What the steps of each lane run on.
            engine: The sizes of a lane.
            on_events: Called on the thread once a dispatch; must not block.
            clock: Seconds from any origin.
            watchdog_seconds: The longest that a turn, or a dispatch, may take.
        """
        self.stats = LoopStats()
        self._workers = [Worker(device) for device in devices]
        self._lanes = lanes.empty(engine)
        self._engine = engine
        self._on_events = on_events
        self._clock = clock
        self._watchdog_seconds = watchdog_seconds
        self._turn_began: float | None = None
        self._commands: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self._requests: dict[int, TokenRequest] = {}
        self._num_sent: dict[int, int] = {}
        self._has_planned = False
        self._is_stopped = False
        self._is_closed = False
        self._submitting = threading.Lock()
        self._count()
        self._thread = threading.Thread(
            target=self._run, name="jaxserver-engine", daemon=True
        )

    def start(self) -> None:
        for lane, worker in enumerate(self._workers):
            worker.start(functools.partial(self._arrived, lane))
        self._thread.start()

    @property
    def _device(self) -> Device:
        """Of the first lane, for what is the same for all."""
        return self._workers[0].device

    def is_alive(self) -> bool:
        is_running = self.is_running() and not self._is_closed
        return is_running and not self.is_hanging()

    def is_running(self) -> bool:
        """Is its thread there, whatever it does."""
        return self._thread.is_alive()

    def is_hanging(self) -> bool:
        """Has its present turn, or what a lane is at, taken too long."""
        begun = [self._turn_began, *(worker.began_seconds for worker in self._workers)]
        now = self._clock()
        return any(x is not None and now - x > self._watchdog_seconds for x in begun)

    def submit(self, request: TokenRequest) -> None:
        """Queues the request, which fails at once where the thread has ended."""
        with self._submitting:
            if not self._is_closed:
                self._commands.put(Submit(request))
                return
        self._report_failure(request.request_id, "the engine does not run any more")

    def cancel(self, request_id: int, kept: int | None = None) -> None:
        """Releases the request at the next plan; unknown ones are no matter.

        It takes no lock, so that a stream may call it while it is collected.

        Args:
            request_id: Which one.
            kept: How many tokens of its answer count; None for all there are.
        """
        self._commands.put(Cancel(request_id, kept))

    def _arrived(self, lane: int, dispatch: Dispatch) -> None:
        self._commands.put(Arrived(lane, dispatch))

    def look(self, tokens: Tokens) -> KeptPages:
        """Waits for what the cache holds of a beginning of some tokens.

        Raises:
            EngineFailed: The thread has ended.
        """
        if not self._device.can_take or not self._engine.shares_prefixes:
            return NO_PAGES
        reply: Future[KeptPages] = Future()
        with self._submitting:
            if self._is_closed:
                raise EngineFailed("the engine does not run any more")
            self._commands.put(Look(tokens, reply))
        try:
            return reply.result(self._watchdog_seconds)
        except TimeoutError:
            raise EngineFailed("the engine does not answer") from None

    def fits(self, kept: KeptPages) -> bool:
        """Whether pages of this engine's cache can hold it."""
        num_pages = self._engine.pages_for(kept.length)
        return len(kept.leaves) == num_pages and self._device.fits(kept)

    def bring(self, tokens: Tokens, kept: KeptPages) -> None:
        """Lets requests that come later find what another engine's cache held."""
        if self._device.can_take:
            self._commands.put(Bring(tokens, kept))

    def stop(self, timeout_seconds: float = 10.0) -> None:
        """Ends the thread, unless it hangs; requests that are still open fail."""
        self._commands.put(Stop())
        if self.is_running() and not self.is_hanging():
            self._thread.join(timeout_seconds)

    def _run(self) -> None:
        reason = "the engine does not run any more"
        try:
            while not self._is_stopped:
                self._turn()
            self._workers[0].call(self._device.orders.dismiss)
            reason = "the engine was stopped"
        except Exception:
            LOGGER.exception("the engine's thread has failed")
        finally:
            with self._submitting:
                self._is_closed = True
            self._turn_began = None
            for worker in self._workers:
                worker.end()
            self._fail(list(self._requests), lambda: EngineFailed(reason))
            self._refuse_commands(reason)
            for worker in self._workers:
                worker.join()

    def _turn(self) -> None:
        """Takes commands, and keeps every lane one dispatch ahead."""
        self._take_commands(wait=not self._has_planned)
        if self._is_stopped:
            return
        now = self._clock()
        for request_id in scheduler.expired(self._lanes.requests, now):
            self._fail([request_id], DeadlineExceeded)
        workers = enumerate(self._workers)
        planned = [self._plan(n, now) for n, worker in workers if worker.has_room]
        self._has_planned = any(planned)

    def _plan(self, lane: int, now: float) -> bool:
        """Gives a lane something to do; whether there was anything."""
        plan, self._lanes = lanes.plan(self._lanes, lane, self._engine, now)
        if plan is None:
            return False
        try:
            self._dispatch(self._workers[lane], plan)
        except Exception as error:  # whatever making what it is given raises
            lost = [*self._workers[lane].request_ids, *plan.request_ids]
            self._recover(lane, error, lost)
        return True

    def _take_commands(self, *, wait: bool) -> None:
        """Applies what has come; where `wait`, until something has.

        Other processes hear from this one even when nothing comes.
        """
        command = self._next_command(wait=wait)
        if command is not None:
            self._apply(command)
            with contextlib.suppress(queue.Empty):
                while True:
                    self._apply(self._commands.get_nowait())
        elif wait:
            self._workers[0].call(self._device.orders.say_nothing)
        self._count()

    def _next_command(self, *, wait: bool) -> Command | None:
        """The oldest command; a turn ends here, and the next one begins."""
        self._turn_began = None
        try:
            is_idle = not any(worker.in_flight for worker in self._workers)
            timeout = self._device.orders.idle_seconds if is_idle else None
            return self._commands.get(block=wait, timeout=timeout)
        except queue.Empty:
            return None
        finally:
            self._turn_began = self._clock()

    def _apply(self, command: Command) -> None:
        match command:
            case Stop():
                self._is_stopped = True
            case Arrived():
                self._arrive(command)
            case Cancel():
                self._cancel(command)
            case Look():
                self._look(command)
            case Bring():
                self._bring(command)
            case Submit():
                self._submit(command.request)

    def _submit(self, request: TokenRequest) -> None:
        self._requests[request.request_id] = request
        # Where a token's bits depend on how it was run, all of them are run again.
        known = request.drawn if self._engine.chunk is None else ()
        if known:  # it may share pages with whom it comes from
            _, self._lanes = lanes.find(self._lanes, self._engine, ())
        self._num_sent[request.request_id] = len(request.drawn)
        queued = queued_request(request, known, self._clock())
        self._lanes = lanes.submit(self._lanes, queued)

    def _look(self, command: Look) -> None:
        found, self._lanes = lanes.find(self._lanes, self._engine, command.tokens)
        device = self._workers[found.lane].device
        take = functools.partial(device.take, found.pages, found.length)
        self._workers[found.lane].let(take, command.reply)

    def _bring(self, command: Bring) -> None:
        tokens = command.tokens[: command.kept.length]
        room = lanes.give(self._lanes, self._engine, tokens)
        if room is None:
            return
        found, self._lanes = room
        worker = self._workers[found.lane]
        try:
            worker.call(lambda: worker.device.put(found.pages, command.kept))
        except Exception as error:  # whatever a dispatch raises
            self._recover(found.lane, error, ())

    def _cancel(self, command: Cancel) -> None:
        request_id, kept = command
        if self._forget(request_id) is None:
            return
        counted = {} if kept is None else {request_id: kept}
        known = self._lanes
        self._lanes = lanes.release(known, self._engine, [request_id], counted)
        end = FinishReason.CANCELLED
        self._on_events([TokenEvent(request_id=request_id, end=end)])

    def _forget(self, request_id: int) -> TokenRequest | None:
        self._num_sent.pop(request_id, None)
        return self._requests.pop(request_id, None)

    def _dispatch(self, worker: Worker, plan: Plan) -> None:
        self._count(dispatched=1)
        if isinstance(plan, DecodePlan):
            orders = worker.device.decode_orders(plan)
        else:
            seated = {c.request_id: c.start for c in plan.chunks if c.seat is not None}
            self._on_events(
                [TokenEvent(request_id=i, admitted=held) for i, held in seated.items()]
            )
            orders = worker.device.prefill_orders(plan, self._requests)
        worker.dispatch(plan, orders, self._clock())

    def _arrive(self, command: Arrived) -> None:
        """Reads what has come, unless it is of before a failure."""
        lane, dispatch = command
        worker, now = self._workers[lane], self._clock()
        if worker.in_flight and worker.in_flight[0] is dispatch:
            try:
                self._read(lane, dispatch, now - (worker.began_seconds or now))
                worker.has_read(now)
            except Exception as error:  # whatever a dispatch raises
                self._recover(lane, error, worker.request_ids)

    def _read(self, lane: int, dispatch: Dispatch, seconds: float) -> None:
        arrival, before = read(dispatch, self._requests), self._lanes.state(lane)
        drawn = {event.request_id: event.token_ids for event in arrival.events}
        num_drawn = {r.request_id: r.num_drawn for r in before.requests}
        events = [self._new(e, num_drawn[e.request_id]) for e in arrival.events]
        finished = frozenset(e.request_id for e in events if e.end is not None)
        for request_id in finished:
            self._forget(request_id)
        plan = dispatch.plan
        outcome = Outcome(
            drawn=drawn,
            finished=finished,
            unsound=arrival.unsound,
            steps=arrival.steps if isinstance(plan, DecodePlan) else 0,
            seconds=seconds,
        )
        state = scheduler.absorb(before, self._engine, plan, outcome)
        self._lanes = self._lanes.after(lane, state)
        self._count(arrival=arrival)
        if events:
            self._on_events(events)

    def _new(self, event: TokenEvent, num_drawn: int) -> TokenEvent:
        """What its reader has not got yet; an answer that began anew repeats itself."""
        request_id = event.request_id
        sent = self._num_sent.get(request_id, 0)
        skipped = max(0, sent - num_drawn)
        self._num_sent[request_id] = max(sent, num_drawn + len(event.token_ids))
        return event.without(skipped) if skipped else event

    def _recover(self, lane: int, error: Exception, failed: Sequence[int]) -> None:
        """A dispatch that fails has consumed the cache: what ran in it is lost.

        Those who have to hear of it hear last, when it is known whether the engine goes
        on.

        Args:
            lane: Whose cache.
            error: What went wrong.
            failed: Requests that were tried.
        """
        LOGGER.error("a step has failed", exc_info=error)
        self._count(failed=1)
        worker = self._workers[lane]
        lost = worker.request_ids
        worker.forget()
        worker.call(worker.device.reset)
        before = self._lanes.state(lane)
        state, given_up = scheduler.lose(before, self._engine, failed, lost)
        self._lanes = self._lanes.after(lane, state)
        reason = f"a step failed: {type(error).__name__}"
        self._fail(given_up, lambda: EngineFailed(reason))

    def _fail(
        self, request_ids: Sequence[int], make: Callable[[], JaxServerError]
    ) -> None:
        """Each reader gets an error of its own, since raising one writes into it."""
        self._lanes = lanes.release(self._lanes, self._engine, request_ids)
        self._count()
        for request_id in request_ids:
            if self._forget(request_id) is not None:
                self._on_events([TokenEvent(request_id=request_id, end=make())])

    def _refuse_commands(self, reason: str) -> None:
        while not self._commands.empty():
            command = self._commands.get()
            if isinstance(command, Submit):
                self._report_failure(command.request.request_id, reason)
            elif isinstance(command, Look):
                command.reply.set_exception(EngineFailed(reason))

    def _report_failure(self, request_id: int, reason: str) -> None:
        self._on_events([TokenEvent(request_id=request_id, end=EngineFailed(reason))])

    def _count(
        self, *, dispatched: int = 0, failed: int = 0, arrival: Arrival = NOTHING
    ) -> None:
        more = self.stats.after(dispatched=dispatched, failed=failed, arrival=arrival)
        self.stats = more.of(self._lanes, self._engine)
