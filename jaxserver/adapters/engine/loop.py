"""The engine's thread: it alone owns the scheduler's state and the device's."""

import collections
import contextlib
import dataclasses
import logging
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TypeAlias

from jaxserver.adapters.engine.commands import (
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
from jaxserver.adapters.engine.requests import (
    NO_PAGES,
    KeptPages,
    TokenEvent,
    TokenRequest,
)
from jaxserver.core import scheduler
from jaxserver.core.config import EngineConfig
from jaxserver.core.prefix_tree import Tokens
from jaxserver.core.schedule import DecodePlan, Outcome, Plan, QueuedRequest
from jaxserver.core.seating import found, given
from jaxserver.ports.errors import DeadlineExceeded, EngineFailed, JaxServerError
from jaxserver.ports.types import FinishReason

LOGGER = logging.getLogger("jaxserver")
OnEvents: TypeAlias = Callable[[Sequence[TokenEvent]], None]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LoopStats:
    """Counts that other threads may read at any time."""

    dispatches: int = 0
    failed_dispatches: int = 0
    unsound_rows: int = 0
    slots_in_use: int = 0
    queue_length: int = 0
    queued_tokens: int = 0
    prefix_hits: int = 0
    preemptions: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    pages_total: int = 0
    pages_used: int = 0
    pages_cached: int = 0


class EngineLoop:
    """Runs requests of token ids, many at a time, on one thread."""

    def __init__(
        self,
        device: Device,
        engine: EngineConfig,
        on_events: OnEvents,
        clock: Callable[[], float],
        watchdog_seconds: float,
    ) -> None:
        """Prepares the thread; `start` lets it run.

        Args:
            device: What the steps run on.
            engine: The sizes.
            on_events: Called on the thread once a dispatch; must not block.
            clock: Seconds from any origin.
            watchdog_seconds: The longest that a turn may take.
        """
        self.stats = LoopStats()
        self._device = device
        self._engine = engine
        self._on_events = on_events
        self._clock = clock
        self._watchdog_seconds = watchdog_seconds
        self._turn_began: float | None = None
        self._commands: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self._requests: dict[int, TokenRequest] = {}
        self._num_sent: dict[int, int] = {}
        self._state = scheduler.empty(engine)
        self._in_flight: collections.deque[Dispatch] = collections.deque()
        self._last_read_seconds = 0.0
        self._is_stopped = False
        self._is_closed = False
        self._submitting = threading.Lock()
        self._count()
        self._thread = threading.Thread(
            target=self._run, name="jaxserver-engine", daemon=True
        )

    def start(self) -> None:
        self._thread.start()

    def is_alive(self) -> bool:
        is_running = self.is_running() and not self._is_closed
        return is_running and not self.is_hanging()

    def is_running(self) -> bool:
        """Is its thread there, whatever it does."""
        return self._thread.is_alive()

    def is_hanging(self) -> bool:
        """Has its present turn, a dispatch or a reading, taken too long."""
        began = self._turn_began
        return began is not None and self._clock() - began > self._watchdog_seconds

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
            self._device.orders.dismiss()
            reason = "the engine was stopped"
        except Exception:
            LOGGER.exception("the engine's thread has failed")
        finally:
            with self._submitting:
                self._is_closed = True
            self._turn_began = None
            self._fail(list(self._requests), lambda: EngineFailed(reason))
            self._refuse_commands(reason)

    def _turn(self) -> None:
        """Takes commands, keeps one dispatch ahead, reads the oldest outcome."""
        is_busy = self._state.waiting or self._state.running or self._in_flight
        self._take_commands(wait=not is_busy)
        now = self._clock()
        for request_id in scheduler.expired(self._state, now):
            self._fail([request_id], DeadlineExceeded)
        plan, self._state = scheduler.plan(self._state, self._engine, now)
        try:
            if plan is not None:
                self._in_flight.append(self._dispatch(plan))
            if len(self._in_flight) > 1 or (plan is None and self._in_flight):
                self._read(self._in_flight[0])
                self._in_flight.popleft()
        except Exception as error:  # whatever a dispatch raises
            unread = [dispatch.plan for dispatch in self._in_flight]
            self._recover(error, unread if plan is None else [*unread, plan])

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
            self._device.orders.say_nothing()
        self._count()

    def _next_command(self, *, wait: bool) -> Command | None:
        """The oldest command; a turn ends here, and the next one begins."""
        self._turn_began = None
        try:
            timeout = self._device.orders.idle_seconds
            return self._commands.get(block=wait, timeout=timeout)
        except queue.Empty:
            return None
        finally:
            self._turn_began = self._clock()

    def _apply(self, command: Command) -> None:
        match command:
            case Stop():
                self._is_stopped = True
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
            *_, self._state = found(self._state, self._engine, ())
        self._num_sent[request.request_id] = len(request.drawn)
        queued = QueuedRequest(
            request_id=request.request_id,
            tokens=request.prompt + known,
            limit=request.limit,
            streaming=request.streaming,
            priority=request.priority,
            queued_seconds=self._clock(),
            deadline=request.deadline,
            num_drawn=len(known),
            scored=request.scored,
        )
        self._state = scheduler.submit(self._state, queued)

    def _look(self, command: Look) -> None:
        pages, length, self._state = found(self._state, self._engine, command.tokens)
        try:
            command.reply.set_result(self._device.take(pages, length))
        except Exception as error:  # whoever asked has to hear of it
            command.reply.set_exception(error)

    def _bring(self, command: Bring) -> None:
        tokens = command.tokens[: command.kept.length]
        room = given(self._state, self._engine, tokens)
        if room is not None:
            pages, self._state = room
            try:
                self._device.put(pages, command.kept)
            except Exception as error:  # whatever a dispatch raises
                self._recover(error, ())

    def _cancel(self, command: Cancel) -> None:
        request_id, kept = command
        if self._forget(request_id) is None:
            return
        counted = {} if kept is None else {request_id: kept}
        state = self._state
        self._state = scheduler.release(state, self._engine, [request_id], counted)
        end = FinishReason.CANCELLED
        self._on_events([TokenEvent(request_id=request_id, end=end)])

    def _forget(self, request_id: int) -> TokenRequest | None:
        self._num_sent.pop(request_id, None)
        return self._requests.pop(request_id, None)

    def _dispatch(self, plan: Plan) -> Dispatch:
        now = self._clock()
        self._count(dispatched=1)
        if isinstance(plan, DecodePlan):
            return self._device.decode(plan, now)
        seated = {c.request_id: c.start for c in plan.chunks if c.seat is not None}
        self._on_events(
            [TokenEvent(request_id=i, admitted=held) for i, held in seated.items()]
        )
        return self._device.prefill(plan, self._requests, now)

    def _read(self, dispatch: Dispatch) -> None:
        arrival = read(dispatch, self._requests)
        drawn = {event.request_id: event.token_ids for event in arrival.events}
        num_drawn = {r.request_id: r.num_drawn for r in self._state.requests}
        events = [self._new(e, num_drawn[e.request_id]) for e in arrival.events]
        now = self._clock()
        seconds = now - max(dispatch.started_seconds, self._last_read_seconds)
        self._last_read_seconds = now
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
        self._state = scheduler.absorb(self._state, self._engine, plan, outcome)
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

    def _recover(self, error: Exception, plans: Sequence[Plan]) -> None:
        """A dispatch that fails has consumed the cache: what ran in it is lost.

        Those who have to hear of it hear last, when it is known whether the engine goes
        on.
        """
        LOGGER.error("a step has failed", exc_info=error)
        self._count(failed=1)
        failed = [request_id for plan in plans for request_id in plan.request_ids]
        self._in_flight.clear()
        self._device.reset()
        self._state, given_up = scheduler.lose(self._state, self._engine, failed)
        reason = f"a step failed: {type(error).__name__}"
        self._fail(given_up, lambda: EngineFailed(reason))

    def _fail(
        self, request_ids: Sequence[int], make: Callable[[], JaxServerError]
    ) -> None:
        """Each reader gets an error of its own, since raising one writes into it."""
        self._state = scheduler.release(self._state, self._engine, request_ids)
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
        state, before = self._state, self.stats
        self.stats = LoopStats(
            dispatches=before.dispatches + dispatched,
            failed_dispatches=before.failed_dispatches + failed,
            unsound_rows=before.unsound_rows + len(arrival.unsound),
            slots_in_use=len(state.running),
            queue_length=len(state.waiting),
            queued_tokens=sum(len(request.tokens) for request in state.waiting),
            prefix_hits=state.num_hits,
            preemptions=state.num_preempted,
            drafted_tokens=before.drafted_tokens + arrival.drafted,
            accepted_tokens=before.accepted_tokens + arrival.accepted,
            pages_total=self._engine.num_pages,
            pages_used=state.cache.num_used,
            pages_cached=state.cache.tree.num_pages,
        )
