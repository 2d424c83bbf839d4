"""Engines over a tiny random model; what is compiled is shared by a whole session."""

import contextlib
import dataclasses
import functools
import itertools
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future

from jaxserver.adapters.engine.compiling import CompiledSteps
from jaxserver.adapters.engine.dispatch import Device
from jaxserver.adapters.engine.loop import EngineLoop, OnEvents
from jaxserver.adapters.engine.orders import NoOrders, Order, Orders
from jaxserver.adapters.engine.requests import KeptPages, Limits, TokenRequest
from jaxserver.adapters.engine.text import Shell, TextEngine
from jaxserver.core.config import EngineConfig
from jaxserver.core.executables import Steps, build_steps
from jaxserver.core.schedule import DecodePlan, PrefillPlan
from jaxserver.core.steps import Outcome
from jaxserver.ports.config import ServerConfig
from jaxserver.ports.model import Params
from jaxserver.ports.receipt import Identity
from jaxserver.ports.telemetry import RequestRecord
from jaxserver.ports.tokenizer import Tokenizer
from tests.fakes import ByteTokenizer, known
from tests.tiny import TINY_BYTES, TinyModel, tiny_model
from tests.waiting import eventually

MAX_LEN = 384
"""Three attention blocks, and more than the longest prefill chunk."""

WIDE = EngineConfig(slots=16, max_len=MAX_LEN, max_stream_tokens=32)
NARROW = EngineConfig(slots=4, prefill_rows=4, max_len=MAX_LEN, max_stream_tokens=8)
"""Cuts its prompts into pieces of 64 tokens; answers in many short blocks."""

PAIR = dataclasses.replace(NARROW, lanes=2)
"""Two lanes of the same, which run side by side."""

SINGLE = dataclasses.replace(NARROW, max_stream_tokens=1)


@functools.cache
def model() -> TinyModel:
    """Untied, so that one token's embedding can be spoiled without the others'."""
    return tiny_model(dataclasses.replace(TINY_BYTES, tied=False), MAX_LEN)


def steps_of(engine: EngineConfig) -> Steps:
    tiny = model()
    return build_steps(tiny.fns, tiny.params, engine, tiny.mesh)


@functools.cache
def compiled(engine: EngineConfig) -> CompiledSteps:
    """Every executable of a configuration; `SINGLE` has most of them from `NARROW`."""
    if engine.lanes > 1:
        return compiled(dataclasses.replace(engine, lanes=1))
    steps = steps_of(engine)
    if engine == SINGLE:
        shared = compiled(NARROW)
        steps = steps._replace(
            init=functools.partial(shared.get, "init", 0),
            adopt=functools.partial(shared.get, "adopt", 0),
            begin=functools.partial(shared.get, "begin", 0),
            prefill={
                time: functools.partial(shared.get, "prefill", time)
                for time in steps.prefill
            },
        )
    executables = CompiledSteps(steps)
    executables.compile_all(lambda stage, done, total: None)
    return executables


def of_pages(sizes: EngineConfig) -> "Parts":
    """An engine whose pages are smaller than a row, compiled as it is used."""
    tiny = tiny_model(TINY_BYTES, sizes.max_len, page_size=sizes.page_size)
    lazy = CompiledSteps(build_steps(tiny.fns, tiny.params, sizes, tiny.mesh))
    return Parts(sizes=sizes, executables=lazy, params=tiny.params)


class HookedDevice(Device):
    """A device that calls functions around its steps: to wait, to count, to raise.

    Attributes:
        before_step: Called with `prefill` or `decode` on the engine's thread.
        before_run: Called with what is to be run, on the lane's thread.
        after_run: Called there with what the step will bring, too.
        before_reset: Called when the state is made anew.
        before_take: Called when pages are read, on the lane's thread.
    """

    before_step: Callable[[str], None] = staticmethod(lambda kind: None)
    before_run: Callable[[Order], None] = staticmethod(lambda order: None)
    after_run: Callable[[Order, Outcome], None] = staticmethod(lambda *_: None)
    before_reset: Callable[[], None] = staticmethod(lambda: None)
    before_take: Callable[[], None] = staticmethod(lambda: None)

    def prefill_orders(
        self, plan: PrefillPlan, requests: Mapping[int, TokenRequest]
    ) -> tuple[Order, ...]:
        self.before_step("prefill")
        return super().prefill_orders(plan, requests)

    def decode_orders(self, plan: DecodePlan) -> tuple[Order, ...]:
        self.before_step("decode")
        return super().decode_orders(plan)

    def run(self, orders: Sequence[Order]) -> Outcome:
        self.before_run(orders[-1])
        outcome = super().run(orders)
        self.after_run(orders[-1], outcome)
        return outcome

    def take(self, pages: Sequence[int], length: int) -> KeptPages:
        self.before_take()
        return super().take(pages, length)

    def reset(self) -> None:
        self.before_reset()
        super().reset()


class Gate:
    """Lets an engine make only the steps it is told to, until it is opened."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._allowed = 0
        self._is_open = False
        self._is_awaited = False

    def allow(self, steps: int) -> None:
        with self._changed:
            self._allowed += steps
            self._changed.notify_all()

    def allow_until(self, holds: Callable[[], bool]) -> bool:
        """Allows one step after the other until something is true, as it should.

        It then holds while the engine stands before its next step, with none allowed.
        """

        def holds_standing() -> bool:
            with self._changed:
                if not self._is_awaited or self._allowed:
                    return False
                if holds():
                    return True
                self._allowed = 1
                self._changed.notify_all()
                return False

        return eventually(holds_standing)

    def open(self) -> None:
        with self._changed:
            self._is_open = True
            self._changed.notify_all()

    def wait(self) -> None:
        with self._changed:
            self._is_awaited = True
            self._changed.wait_for(lambda: self._is_open or self._allowed)
            self._is_awaited = False
            self._allowed = max(0, self._allowed - 1)


def gated_device(gate: Gate) -> type[HookedDevice]:
    """For an engine that a test does not start by itself."""

    class GatedDevice(HookedDevice):
        before_step = staticmethod(lambda kind: gate.wait())

    return GatedDevice


class Records:
    """Telemetry that remembers."""

    def __init__(self) -> None:
        self.all: list[RequestRecord] = []

    def request_finished(self, record: RequestRecord) -> None:
        self.all.append(record)

    def close(self) -> None:
        return None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parts:
    """What an engine of a test is made of.

    Attributes:
        sizes: One of the configurations above, or another.
        executables: None for those shared by the session.
        prepare: Is given the device before the engine starts.
        orders: Hear of what the device runs.
        identity: What its receipts say of it.
    """

    sizes: EngineConfig = NARROW
    config: ServerConfig = dataclasses.field(default_factory=ServerConfig)
    executables: CompiledSteps | None = None
    params: Params | None = None
    tokenizer: Tokenizer = dataclasses.field(default_factory=ByteTokenizer)
    records: Records = dataclasses.field(default_factory=Records)
    clock: Callable[[], float] = time.monotonic
    prepare: Callable[[HookedDevice], None] = lambda device: None
    orders: Orders = dataclasses.field(default_factory=NoOrders)
    identity: Future[Identity] = dataclasses.field(default_factory=known)


def start(parts: Parts) -> TextEngine:
    """Starts an engine; the seeds it chooses itself are 1000, 1001 and so on."""
    sizes = parts.sizes
    config = dataclasses.replace(
        parts.config, max_stream_tokens=sizes.max_stream_tokens
    )
    shell = Shell(
        telemetry=parts.records,
        clock=parts.clock,
        new_seed=functools.partial(next, itertools.count(1000)),
        identity=parts.identity,
    )
    known = parts.executables.steps.processors if parts.executables else {}
    limits = Limits(sizes.max_len, processors=known)
    engine = TextEngine(parts.tokenizer, config, sizes.all_slots, limits, shell)

    def make_loop(on_events: OnEvents) -> EngineLoop:
        executables = parts.executables or compiled(sizes)
        params = parts.params or model().params
        devices = []
        for _ in range(sizes.lanes):
            device = HookedDevice(executables, params, sizes, parts.orders)
            parts.prepare(device)
            devices.append(device)
        watchdog_seconds = config.watchdog_seconds
        return EngineLoop(devices, sizes, on_events, parts.clock, watchdog_seconds)

    engine.start(make_loop)
    return engine


@contextlib.contextmanager
def gated(parts: Parts | None = None) -> Iterator[tuple[TextEngine, Gate]]:
    """An engine that stands still until its gate lets it go on."""
    gate = Gate()

    parts = parts or Parts()

    def prepare(device: HookedDevice) -> None:
        parts.prepare(device)
        then = device.before_step

        def wait(kind: str) -> None:
            gate.wait()
            then(kind)

        device.before_step = wait

    engine = start(dataclasses.replace(parts, prepare=prepare))
    try:
        yield engine, gate
    finally:
        gate.open()
        engine.close(0.0)


@contextlib.contextmanager
def running(parts: Parts | None = None) -> Iterator[TextEngine]:
    """An engine that ends with the block, without waiting for its answers."""
    engine = start(parts or Parts())
    try:
        yield engine
    finally:
        engine.close(0.0)


def tokenised(engine: TextEngine) -> None:
    """Waits until the prompts given so far are in the engine thread's hands."""
    engine._encoder.submit(lambda: None).result(10)
