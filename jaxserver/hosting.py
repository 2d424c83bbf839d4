"""One model from its configuration to its end: loaded, compiled, running, drained."""

import concurrent.futures
import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from jaxserver.adapters.engine.compiling import COMPILES, CompiledSteps
from jaxserver.adapters.engine.going_on import resume
from jaxserver.adapters.engine.text import TextEngine
from jaxserver.adapters.telemetry.metrics import MetricsTelemetry
from jaxserver.hearing import hear_requests
from jaxserver.identity import identity_of, in_background
from jaxserver.ports.config import ServerConfig
from jaxserver.ports.errors import EngineFailed, JaxServerError, NotReady
from jaxserver.ports.generator import SavableStream
from jaxserver.ports.processors import Processors
from jaxserver.ports.progress import Progress
from jaxserver.ports.receipt import Identity
from jaxserver.ports.status import ServerState, StatusSnapshot
from jaxserver.ports.telemetry import RequestRecord
from jaxserver.ports.types import GenerationRequest, Usage
from jaxserver.snapshot import served_name, take_snapshot
from jaxserver.wiring import (
    Model,
    compile_model,
    start_engine,
    with_processors,
)

LOADING_RETRY_SECONDS = 5
PART_SECONDS = 10.0
"""How long the end waits for what is still coming: weights, pages."""


class Host:
    """Implements the `Generator` and `ServerStatus` ports around an engine.

    Attributes:
        config: What it was given; once it has a model, with the sizes that came of it.
        model_name: Name under which the model is served.
        model: What it serves, None before it is loaded.
        compiled: The executables, None before they are known.
        engine: What runs them, None before it is started.
        identity: All that its answers depend on, once a model is loaded and read.
        metrics: What it has counted and measured so far.
    """

    def __init__(
        self,
        config: ServerConfig,
        processors: Processors,
        own_prompts: Callable[[], Sequence[str]],
    ) -> None:
        """Takes a configuration, and what the user brings.

        Args:
            config: The configuration.
            processors: The user's own logits processors.
            own_prompts: Tells how the user writes prompts.
        """
        self.config = config
        self._processors = processors
        self.model_name = served_name(config.model)
        self.model: Model | None = None
        self.compiled: CompiledSteps | None = None
        self.engine: TextEngine | None = None
        self.identity: Future[Identity] | None = None
        self._own_prompts = own_prompts
        self.metrics = MetricsTelemetry(self.snapshot)
        self._telemetry = hear_requests(config, self.metrics)
        self._begun: list[Future[Any]] = []
        self._state = ServerState.LOADING
        self._started_seconds = time.monotonic()
        self._compiles_at_ready = 0

    def begins(self, make: Callable[[], None]) -> Future[None]:
        """Makes a part of the application meanwhile, unless the end has come.

        The end waits for it.
        """
        part: Future[None] = Future()
        if self._state in {ServerState.DRAINING, ServerState.FAILED}:
            part.set_result(None)
        else:
            part = in_background(make)
            self._begun.append(part)
        return part

    def open(
        self,
        load: Callable[[], Model],
        on_loaded: Callable[[Model], None],
        progress: Progress,
    ) -> None:
        """Brings a model, compiles it, unless told to wait with it, and lets it run.

        Args:
            load: Finds the model and begins to read it.
            on_loaded: Hears of the model before it is read and compiled.
            progress: Hears how far compiling is.
        """
        try:
            model = load()
            self._begun.append(model.weights)
            self.model = with_processors(model, self._processors)
            sizes = self.model.engine
            self.config = dataclasses.replace(
                self.config, slots=sizes.all_slots, max_length=sizes.max_len
            )
            on_loaded(self.model)
            self.identity = in_background(functools.partial(self._identify, self.model))
            self._state = ServerState.COMPILING
            self.compiled = compile_model(self.model, self.config, progress)
            parts = (self.model, self.compiled, self.config, self._telemetry)
            self.engine = start_engine(*parts, self.identity)
        except BaseException:
            self._state = ServerState.FAILED
            self._wait_for_begun()
            raise
        self._compiles_at_ready = COMPILES.count
        self._state = ServerState.READY

    def compile(self, progress: Progress) -> None:
        """Compiles what is not compiled yet."""
        if self.compiled is None:
            raise self.not_ready()
        self.compiled.compile_all(progress)
        self._compiles_at_ready = COMPILES.count

    def resume(self, path: Path, max_new_tokens: int | None) -> SavableStream:
        return resume(self._ready_engine(), path, max_new_tokens)

    def generate(self, request: GenerationRequest) -> SavableStream:
        try:
            return self._ready_engine().generate(request)
        except JaxServerError as error:
            self._telemetry.request_finished(_not_taken(request, error))
            raise

    def _ready_engine(self) -> TextEngine:
        """Requests wait until all that is promised is there."""
        is_early = self._state in {ServerState.LOADING, ServerState.COMPILING}
        if self.engine is None or is_early:
            raise self.not_ready()
        return self.engine

    def drain(self, seconds: float) -> bool:
        """Takes no more requests, lets those there are finish, and stops.

        Returns whether everything has ended; where a step hangs, nothing can end it.
        """
        if self._state is not ServerState.FAILED:
            self._state = ServerState.DRAINING
        self._wait_for_begun()
        has_ended = self.engine is None or self.engine.close(seconds)
        self._telemetry.close()
        return has_ended

    def _wait_for_begun(self) -> None:
        """A process whose thread imports, or is in JAX, may end in an abort."""
        concurrent.futures.wait(self._begun, PART_SECONDS)

    def snapshot(self) -> StatusSnapshot:
        return take_snapshot(
            self.config,
            self._state if self.is_alive() else ServerState.FAILED,
            plan=None if self.model is None else self.model.plan,
            engine=self.engine,
            uptime_seconds=time.monotonic() - self._started_seconds,
            compiles_at_ready=self._compiles_at_ready,
        )

    def fingerprint(self) -> str | None:
        if self.identity is None:
            raise self.not_ready()
        is_known = self.identity.exception() is None
        return self.identity.result().fingerprint() if is_known else None

    def _identify(self, model: Model) -> Identity:
        """Waits for what it is made of; the sizes are those that it came to."""
        config = dataclasses.replace(
            self.config,
            backend=model.backend,
            mesh_axes_shape=tuple(model.mesh.devices.shape),
        )
        digests, own_prompts = model.digests.result(), self._own_prompts()
        return identity_of(self.model_name, config, digests, own_prompts, model.kernels)

    def is_ready(self) -> bool:
        return self._state is ServerState.READY and self.is_alive()

    def is_alive(self) -> bool:
        if self._state is ServerState.FAILED:
            return False
        is_running = self._state is ServerState.READY
        return self.engine is None or not is_running or self.engine.is_alive()

    def loaded(self) -> Model:
        """The model.

        Raises:
            NotReady: There is none yet.
        """
        if self.model is None:
            raise self.not_ready()
        return self.model

    def not_ready(self) -> Exception:
        """The error for whoever asks too early or too late."""
        if not self.is_alive():
            return EngineFailed("the engine does not run any more")
        message = f"the server is {self._state.value}"
        return NotReady(message, LOADING_RETRY_SECONDS)


def _not_taken(request: GenerationRequest, error: JaxServerError) -> RequestRecord:
    """What is told of a request that the engine has not heard of."""
    return RequestRecord(
        request_id=None,
        outcome=error.code,
        usage=Usage(prompt_tokens=0, completion_tokens=0),
        queue_seconds=None,
        first_token_seconds=None,
        total_seconds=0.0,
        origin=request.origin,
    )
