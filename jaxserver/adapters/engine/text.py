"""Implements the `Generator` port: text in, text out, around the engine's thread.

Prompts are tokenised in a worker thread before admission. Answers are detokenised, and
searched for stop strings, in another, so that the engine's thread sees token ids only.
"""

import atexit
import concurrent.futures
import dataclasses
import functools
import itertools
import logging
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import NamedTuple

from jaxserver.adapters.engine.answer import Answer
from jaxserver.adapters.engine.going_on import Keeper
from jaxserver.adapters.engine.loop import EngineLoop
from jaxserver.adapters.engine.pace import Pace
from jaxserver.adapters.engine.prompts import read_prompt
from jaxserver.adapters.engine.receipts import ReceiptWriter, has_receipt
from jaxserver.adapters.engine.requests import Limits, TokenEvent, TokenRequest
from jaxserver.adapters.engine.stream import (
    Begun,
    Channel,
    EngineStream,
    Item,
    Waiter,
    wake,
)
from jaxserver.ports.config import ServerConfig
from jaxserver.ports.errors import (
    EngineFailed,
    JaxServerError,
    NotReady,
    ServerFull,
)
from jaxserver.ports.receipt import Identity, request_again
from jaxserver.ports.telemetry import Telemetry
from jaxserver.ports.tokenizer import Tokenizer
from jaxserver.ports.types import FinishReason, GenerationRequest, SamplingParams

LOGGER = logging.getLogger("jaxserver")
STOP_SECONDS = 10.0
WATCH_SECONDS = 1.0
"""How often the engine's thread is looked after while it brings nothing."""


class Shell(NamedTuple):
    """What the outside world lends the engine, so that tests can lend something else.

    Attributes:
        clock: Seconds from any origin.
        new_seed: A number from 0 to 2**64 - 1 that nobody can guess.
        identity: What answers depend on; it may take a while to be known.
    """

    telemetry: Telemetry
    clock: Callable[[], float]
    new_seed: Callable[[], int]
    identity: Future[Identity]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TextStats:
    """Counts since the start."""

    requests_served: int = 0
    prompts_served: int = 0
    tokens_generated: int = 0


class TextEngine:
    """Queues requests, follows their answers, and tells the loop when to stop one."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        config: ServerConfig,
        slots: int,
        limits: Limits,
        shell: Shell,
    ) -> None:
        self.stats = TextStats()
        self._tokenizer = tokenizer
        self._config = config
        self._max_open = slots + config.max_queue
        self._limits = limits
        self._shell = shell
        self._loop: EngineLoop | None = None
        self._pace = Pace()
        self._ids = itertools.count()
        self._answers: dict[int, Answer] = {}
        self._lock = threading.Lock()
        self._is_draining = False
        self._is_empty = threading.Condition(self._lock)
        self._encoding_thread: int | None = None
        self._encoder = concurrent.futures.ThreadPoolExecutor(1, "jaxserver-encode")
        self._events: queue.SimpleQueue[Sequence[TokenEvent] | None] = (
            queue.SimpleQueue()
        )
        self._decoder = threading.Thread(
            target=self._decode, name="jaxserver-decode", daemon=True
        )

    def start(self, make_loop: Callable[[Callable[..., None]], EngineLoop]) -> None:
        """Starts the threads; `make_loop` is given what the loop reports to."""
        self._loop = make_loop(self._events.put)
        self._decoder.start()
        self._loop.start()
        atexit.register(self.close, 0.0)  # a thread inside JAX would abort the exit

    @property
    def loop(self) -> EngineLoop:
        if self._loop is None:
            raise EngineFailed("the engine was not started")
        return self._loop

    def is_alive(self) -> bool:
        return self.loop.is_alive() and self._decoder.is_alive()

    @property
    def queue_length(self) -> int:
        """Requests that have no slot."""
        return max(0, len(self._answers) - self.loop.stats.slots_in_use)

    def generate(self, request: GenerationRequest) -> EngineStream:
        """Queues a request and returns at once; see `ports.generator`."""
        return self.go_on(Begun(request))

    def go_on(self, begun: Begun) -> EngineStream:
        """As `generate`, for an answer whose beginning its reader has."""
        request = begun.request
        channel = Channel()
        request_id = next(self._ids)
        seed, seconds = request.sampling.seed, request.deadline_seconds
        now = self._shell.clock()
        answer = Answer(
            request_id=request_id,
            sampling=request.sampling,
            seed=self._shell.new_seed() if seed is None else seed,
            channel=channel,
            tokenizer=self._tokenizer,
            queued_seconds=now,
            deadline=None if seconds is None else now + seconds,
            origin=request.origin,
            scores={} if request.score_prompt else None,
        )
        if threading.get_ident() == self._encoding_thread:
            raise EngineFailed("what a prompt keeps when it is cut asks for an answer")
        with self._lock:
            if self._is_draining:
                raise NotReady("the server is draining", self._retry_seconds())
            if not self.is_alive():
                raise EngineFailed("the engine does not run any more")
            if len(self._answers) >= self._max_open:
                open_now = f"{self._max_open} requests are being served or waiting"
                raise ServerFull(open_now, self._retry_seconds())
            self._answers[request_id] = answer
            submitted = self._encoder.submit(self._encode, begun, answer)
        cancel = functools.partial(self._cancel, answer)
        return EngineStream(channel, cancel, Keeper(self, answer, begun, submitted))

    @property
    def identity(self) -> Identity:
        """What answers depend on; waits until that is known."""
        return self._shell.identity.result()

    def close(self, timeout_seconds: float) -> bool:
        """Takes no more requests, lets those there are finish, ends the threads.

        Requests that are not finished in time fail with `EngineFailed`. Returns whether
        the engine's thread has ended; where a step hangs, nothing can end it.
        """
        atexit.unregister(self.close)
        with self._lock:
            self._is_draining = True
            self._is_empty.wait_for(lambda: not self._answers, timeout_seconds)
        self._encoder.shutdown(cancel_futures=True)
        self.loop.stop(STOP_SECONDS)
        with self._lock:
            for answer in self._answers.values():
                self._report(answer, EngineFailed("the engine was stopped"))
        self._events.put(None)
        self._decoder.join(STOP_SECONDS)
        return not self.loop.is_running()

    def _cancel(self, answer: Answer) -> None:
        answer.is_cancelled = True
        self.loop.cancel(answer.request_id)

    def _encode(self, begun: Begun, answer: Answer) -> None:
        """Runs in the worker thread; what goes wrong is the request's answer."""
        self._encoding_thread = threading.get_ident()
        try:
            self._submit(begun, answer)
        except JaxServerError as error:
            self._report(answer, error)
        except Exception as error:  # the reader must hear of it
            LOGGER.exception("a prompt could not be tokenised")
            reason = f"the prompt could not be tokenised: {type(error).__name__}"
            self._report(answer, EngineFailed(reason))

    def _submit(self, begun: Begun, answer: Answer) -> None:
        request, read, is_told = begun
        if answer.is_cancelled:
            self._report(answer, FinishReason.CANCELLED)
            return
        prompt = read_prompt(request, self._tokenizer, self._config, self._limits)
        self._check_queue(len(prompt.ids))
        answer.prompt_tokens = len(prompt.ids)
        answer.prompt_tokens_dropped = prompt.dropped
        sampling = self._complete(request.sampling)
        wanted = sampling.max_new_tokens
        if wanted is None:
            wanted = self._config.max_new_tokens
        held = self._limits.decoder_prompt or len(prompt.ids)
        eos = frozenset() if sampling.ignore_eos else self._tokenizer.eos_ids
        end_ids = eos | frozenset(sampling.stop_token_ids)
        run = dataclasses.replace(sampling, seed=answer.seed, max_new_tokens=wanted)
        answer.end_ids = end_ids
        answer.asked = request_again(
            prompt.ids, run, choice=request.choice, score_prompt=request.score_prompt
        )
        if request.receipt:
            answer.receipt = ReceiptWriter(answer.asked, end_ids)
        is_over = answer.begin(read, end_ids)
        if is_over or is_told:
            answer.has_been_told()
        if is_over:
            self._report(answer, FinishReason.STOP)
            return
        self.loop.submit(
            TokenRequest(
                request_id=answer.request_id,
                prompt=prompt.ids,
                held=held,
                sampling=sampling,
                seed=answer.seed,
                limit=min(held + max(wanted, len(read)), self._limits.max_len),
                end_ids=end_ids,
                streaming=request.streaming,
                scored=request.score_prompt,
                choice=request.choice,
                drawn=read,
                priority=request.priority,
                deadline=answer.deadline,
            )
        )
        if answer.is_cancelled:  # perhaps before the loop knew of it
            self.loop.cancel(answer.request_id)

    def _check_queue(self, num_tokens: int) -> None:
        """Refuses a prompt where those that wait are long enough already."""
        most, waiting = self._config.max_queue_tokens, self._tokens_waiting()
        if most is not None and waiting and waiting + num_tokens > most:
            raise ServerFull(f"{waiting} tokens are waiting", self._retry_seconds())

    def _tokens_waiting(self) -> int:
        answers = tuple(self._answers.values())
        return sum(a.prompt_tokens for a in answers if a.admitted_seconds is None)

    def _retry_seconds(self) -> int:
        """When what waits will have been served, as fast as things went lately."""
        return self._pace.seconds_for(self._tokens_waiting(), self._shell.clock())

    def _complete(self, sampling: SamplingParams) -> SamplingParams:
        """Fills in what the request left to the server."""
        defaults = {
            name: getattr(self._config, name)
            for name in ("temperature", "top_p", "top_k")
            if getattr(sampling, name) is None
        }
        return dataclasses.replace(sampling, **defaults)

    def _report(self, answer: Answer, end: FinishReason | JaxServerError) -> None:
        self._events.put([TokenEvent(request_id=answer.request_id, end=end)])

    def _decode(self) -> None:
        """Runs in a thread until it is told to end, or a step does not."""
        while not self.loop.is_hanging():
            try:
                events = self._events.get(timeout=WATCH_SECONDS)
            except queue.Empty:
                continue
            if events is None:
                return
            self._deliver(events)
        self._give_up()

    def _give_up(self) -> None:
        """No request has come since the engine hangs, and none waits for it longer."""
        reason = f"a step has taken longer than {self._config.watchdog_seconds:g} s"
        LOGGER.error("the engine hangs: %s", reason)
        self.loop.stop()
        with self._lock:
            open_now = tuple(self._answers)
        self._deliver(
            [TokenEvent(request_id=i, end=EngineFailed(reason)) for i in open_now]
        )

    def _deliver(self, events: Sequence[TokenEvent]) -> None:
        wake([w for event in events if (w := self._follow(event)) is not None])

    def _follow(self, event: TokenEvent) -> Waiter | None:
        """Gives one answer what one dispatch brought it."""
        answer = self._answers.get(event.request_id)
        if answer is None:
            return None
        now = self._shell.clock()
        if event.admitted is not None:
            if answer.admitted_seconds is None:
                answer.admitted_seconds, answer.cached_tokens = now, event.admitted
                self._count(prompts=1)
            return None
        item = self._take_in(answer, event, now)
        if answer.outcome is not None:
            if event.end is None:
                self.loop.cancel(event.request_id, answer.completion_tokens)
            self._finish(answer, now)
        return None if item is None else self._give(answer, item)

    def _give(self, answer: Answer, item: Item) -> Waiter | None:
        """Hands an item on; one with a receipt when that is known which it needs."""
        channel, receipt = answer.channel, answer.receipt
        if receipt is None or not has_receipt(item):
            return channel.put(item)

        def give(identity: Future[Identity]) -> None:
            waiter = channel.put(receipt.written(item, identity))
            wake([] if waiter is None else [waiter])

        self._shell.identity.add_done_callback(give)
        return None

    def _take_in(self, answer: Answer, event: TokenEvent, now: float) -> Item | None:
        """What cannot be written down fails alone; the thread serves all the others."""
        try:
            return answer.take_in(event, now)
        except Exception as error:
            LOGGER.exception("an answer could not be written down")
            answer.outcome = EngineFailed.code
            reason = f"the answer could not be written down: {type(error).__name__}"
            return EngineFailed(reason)

    def _finish(self, answer: Answer, now: float) -> None:
        self._count(requests=1, tokens=answer.completion_tokens)
        self._pace.note(now, answer.prompt_tokens + answer.completion_tokens)
        try:
            self._shell.telemetry.request_finished(answer.record(now))
        except Exception:
            LOGGER.exception("the telemetry has failed")
        with self._lock:
            del self._answers[answer.request_id]
            if not self._answers:
                self._is_empty.notify_all()

    def _count(self, *, requests: int = 0, prompts: int = 0, tokens: int = 0) -> None:
        self.stats = TextStats(
            requests_served=self.stats.requests_served + requests,
            prompts_served=self.stats.prompts_served + prompts,
            tokens_generated=self.stats.tokens_generated + tokens,
        )
