"""Puts a model together out of the adapters and the core."""

import dataclasses
import functools
import importlib.metadata
import logging
import secrets
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import jax
from jax.sharding import Mesh

from jaxserver.adapters.checkpoints.cache import cache_folder
from jaxserver.adapters.checkpoints.digest import files_digest
from jaxserver.adapters.checkpoints.locate import locate, open_checkpoint
from jaxserver.adapters.checkpoints.torch_files import need_torch
from jaxserver.adapters.engine.compile_cache import keep_compiled_code
from jaxserver.adapters.engine.compiling import CompiledSteps, Remembered
from jaxserver.adapters.engine.dispatch import Device
from jaxserver.adapters.engine.loop import EngineLoop, OnEvents
from jaxserver.adapters.engine.orders import Broadcast, NoOrders
from jaxserver.adapters.engine.processor import (
    compiler_options,
    multiplies_bytes,
    use_processor,
)
from jaxserver.adapters.engine.requests import Limits
from jaxserver.adapters.engine.stand_in import zeros_like
from jaxserver.adapters.engine.text import Shell, TextEngine
from jaxserver.adapters.flax_models.loading import model_from_pytorch
from jaxserver.adapters.prompts import sources
from jaxserver.adapters.prompts.formatter import ChatTemplateFormatter
from jaxserver.adapters.tokenizers import folder as folder_tokenizer
from jaxserver.adapters.tokenizers import gguf as gguf_tokenizer
from jaxserver.adapters.tokenizers.tokenizer import PieceTokenizer
from jaxserver.backends import (
    Backend,
    Place,
    backend_in_memory,
    backend_of,
    has_draft,
    is_native,
)
from jaxserver.core.compute import Compute, compute_on
from jaxserver.core.config import EngineConfig
from jaxserver.core.executables import build_steps
from jaxserver.core.memory import plan_memory
from jaxserver.core.params import leaves
from jaxserver.core.partition_rules import read_rules
from jaxserver.core.processors import check as check_processors
from jaxserver.core.sharding import make_mesh
from jaxserver.identity import in_background
from jaxserver.ports.config import DTYPES, ServerConfig
from jaxserver.ports.errors import EngineFailed, InvalidConfig
from jaxserver.ports.memory import MemoryPlan
from jaxserver.ports.model import ModelFns, Params, PartitionRules
from jaxserver.ports.processors import Processors
from jaxserver.ports.progress import Progress, no_progress
from jaxserver.ports.prompt import PromptFormatter
from jaxserver.ports.receipt import Digests, Identity
from jaxserver.ports.telemetry import Telemetry
from jaxserver.ports.tensors import Checkpoint
from jaxserver.ports.tokenizer import Tokenizer
from jaxserver.sizing import engine_config

LOGGER = logging.getLogger("jaxserver")
Parts: TypeAlias = tuple[PieceTokenizer, ChatTemplateFormatter, str | None]
"""Tokenizer and formatter, and the digest of the model's own settings."""


class Model(NamedTuple):
    """A model that is being read, with everything that makes text of its tokens.

    Attributes:
        weights: As soon as they are in memory.
        shapes: Theirs, with their shardings.
        plan: The memory it was said to take.
        backend: What runs it, `native` or `flax`.
        digests: Of all that it is made of, as soon as that has been read.
        made_of: See `Backend`.
        kernels: See `core.compute.Compute`.
    """

    fns: ModelFns
    weights: Future[Params]
    shapes: Any
    tokenizer: Tokenizer
    formatter: PromptFormatter
    engine: EngineConfig
    mesh: Mesh
    plan: MemoryPlan
    backend: str
    digests: Future[Digests]
    made_of: str | None = None
    kernels: str = ""

    @property
    def params(self) -> Params:
        """The weights, which are waited for.

        Raises:
            BrokenCheckpoint: A tensor is missing or has another shape than expected.
        """
        return self.weights.result()


Load: TypeAlias = Callable[[ServerConfig, Progress], Model]
"""Finds the model that a configuration is for, and begins to read it."""


def plan(config: ServerConfig) -> MemoryPlan:
    """What `load_model` will take, from the checkpoint's header."""
    checkpoint = open_checkpoint(locate(config.model, no_progress))
    place, compute = _place(config), _compute(config)
    backend = backend_of(checkpoint, config, place, compute, no_progress)
    return _plan(config, backend, engine_config(config, backend))


def load_model(
    config: ServerConfig, progress: Progress, partition_rules: PartitionRules = ()
) -> Model:
    """Finds a checkpoint, reads tokenizer and template, and begins with its weights.

    Args:
        config: The configuration.
        progress: Hears how far downloading and loading are.
        partition_rules: The user's own; see `core.partition_rules.read_rules`.
    """
    place = _place(config, partition_rules)
    checkpoint = open_checkpoint(locate(config.model, progress))
    backend = backend_of(checkpoint, config, place, _compute(config), progress)
    return _made(config, backend, *_read_parts(checkpoint), progress)


def load_torch_model(
    config: ServerConfig, progress: Progress, partition_rules: PartitionRules = ()
) -> Model:
    """As `load_model`, a Flax class by its own way from PyTorch's files."""
    path = locate(config.model, progress)
    need_torch(str(path))
    checkpoint = open_checkpoint(path)
    if is_native(checkpoint, config):
        return load_model(config, progress, partition_rules)
    dtype = _compute(config).dtype
    model = model_from_pytorch(checkpoint, dtype)
    place = _place(config, partition_rules)
    backend = backend_in_memory(model, None, config, place, dtype)
    digest = functools.partial(files_digest, checkpoint.files)
    backend = backend._replace(digest=digest)
    return _made(config, backend, *_read_parts(checkpoint), progress)


def take_model(
    model: Any,
    params: Params,
    tokenizer: Any,
    config: ServerConfig,
    partition_rules: PartitionRules = (),
) -> Model:
    """Serves a `FlaxPreTrainedModel` that is in memory already.

    Args:
        model: Of a class of transformers' or of the user's own.
        params: Its parameters, or None for those that it holds itself.
        tokenizer: One of transformers'.
        config: The configuration.
        partition_rules: The user's own; see `core.partition_rules.read_rules`.
    """
    place = _place(config, partition_rules)
    dtype = _compute(config).dtype
    backend = backend_in_memory(model, params, config, place, dtype)
    return _made(config, backend, *_saved(model, tokenizer), no_progress)


def with_processors(model: Model, own: Processors) -> Model:
    """The model with the logits processors that requests may name.

    Args:
        model: The model.
        own: The user's; they go before those that installed packages bring, as entry
            points of the group `jaxserver.logits_processors`.

    Raises:
        InvalidConfig: One cannot be had or traced.
    """
    known = {**_installed_processors(), **own}
    check_processors(known, model.fns.vocab_size)
    return model._replace(fns=model.fns._replace(processors=tuple(known.items())))


def _installed_processors() -> Processors:
    found = {}
    for entry in importlib.metadata.entry_points(group="jaxserver.logits_processors"):
        try:
            found[entry.name] = entry.load()
        except Exception as error:
            got = f"{entry.name}, which cannot be imported: {error}"
            allowed = "entry points that are `LogitsProcessor`s"
            raise InvalidConfig("logits_processors", got, allowed) from error
    return found


def _made(
    config: ServerConfig,
    backend: Backend,
    tokenizer: PieceTokenizer,
    formatter: ChatTemplateFormatter,
    settings: str | None,
    progress: Progress,
) -> Model:
    if has_draft(config) and backend.fns.guess is None:
        allowed = "ngram or none for a model that is run by its Flax class"
        raise InvalidConfig("speculate", config.speculate, allowed)
    engine = engine_config(config, backend)
    dtypes = (DTYPES[config.dtype], backend.kept, _compute(config).dtype)
    if len(set(dtypes)) > 1:
        said = "%s weights are kept in %s and computed in %s on this device"
        LOGGER.info(said, *dtypes)
    ends = tokenizer.eos_ids | backend.end_ids
    tokenizer = dataclasses.replace(tokenizer, eos_ids=ends)
    digests = in_background(
        lambda: Digests(
            backend.digest(), settings, tokenizer.digest(), formatter.digest()
        )
    )
    return Model(
        fns=backend.fns,
        weights=in_background(lambda: backend.load(progress)),
        shapes=backend.shapes,
        tokenizer=tokenizer,
        formatter=formatter,
        engine=engine,
        mesh=backend.place.mesh,
        plan=_said(_plan(config, backend, engine)),
        backend=backend.kind,
        digests=digests,
        made_of=backend.made_of,
        kernels=backend.kernels,
    )


def _read_parts(checkpoint: Checkpoint) -> Parts:
    if checkpoint.layout == "gguf":
        metadata = checkpoint.config
        formatter = sources.from_metadata(metadata)
        return gguf_tokenizer.from_gguf(metadata), formatter, None
    return _of_folder(Path(checkpoint.path))


def _saved(model: Any, tokenizer: Any) -> Parts:
    """The same, by way of the files that transformers writes."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        model.config.save_pretrained(folder)
        model.generation_config.save_pretrained(folder)
        return _of_folder(Path(folder))


def _of_folder(path: Path) -> Parts:
    files = [path / name for name in ("config.json", "generation_config.json")]
    settings = files_digest([str(file) for file in files if file.exists()])
    return folder_tokenizer.from_folder(path), sources.from_folder(path), settings


def compile_model(
    model: Model, config: ServerConfig, progress: Progress
) -> CompiledSteps:
    """Begins to compile every step, unless told not to.

    A processor compiles some steps while it reads the weights and runs others. The
    compilers of other devices try things out on them, and several processes run a step
    together: there one is done after the other.
    """
    _keep_compiled_code()
    use_processor()
    is_apart = jax.devices()[0].platform != "cpu" or jax.process_count() > 1
    if is_apart:
        model.weights.result()
    shapes, options = model.shapes, compiler_options()
    steps = build_steps(model.fns, shapes, model.engine, model.mesh, options)
    compiled = CompiledSteps(steps, _remembered(model))
    if config.pre_compile:
        compiled.begin(progress)
    if is_apart:
        try:
            compiled.finish()
        finally:
            compiled.cancel()
    return compiled


def _remembered(model: Model) -> Remembered | None:
    """Steps of other starts, where all that they are made of can be said.

    They are read by ways into JAX that another version of it may not have.
    """
    is_said = model.made_of is not None and not model.fns.processors
    if not is_said or jax.process_count() > 1:
        return None
    weights = jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), model.shapes)
    made_of = repr((model.made_of, model.engine, model.mesh, weights))
    try:
        from jaxserver.adapters.engine.traces import Traces  # noqa: PLC0415  # see above

        return Traces(made_of, list(model.mesh.devices.flat)).get
    except (ImportError, AttributeError, TypeError) as error:
        LOGGER.debug("steps are traced at every start: %s", error)
        return None


def start_engine(
    model: Model,
    compiled: CompiledSteps,
    config: ServerConfig,
    telemetry: Telemetry,
    identity: Future[Identity],
    new_seed: Callable[[], int] = lambda: secrets.randbits(64),
) -> TextEngine:
    """Lets the engine run, as soon as all that was begun is compiled."""

    def check_weights() -> None:
        if model.weights.done():
            model.weights.result()

    def make_loop(on_events: OnEvents) -> EngineLoop:
        is_one = jax.process_count() == 1
        orders = NoOrders() if is_one else Broadcast(compiled.steps, engine)
        is_read = not config.pre_compile or model.weights.done()
        held = model.params if is_read else zeros_like(model.shapes)
        devices = [Device(compiled, held, engine, orders) for _ in range(engine.lanes)]
        if config.pre_compile:
            devices[0].warm_up(check_weights)
        for device in devices:
            device.params = model.params
        compiled.finish()
        return EngineLoop(devices, engine, on_events, shell.clock, watchdog_seconds)

    engine, watchdog_seconds = model.engine, config.watchdog_seconds
    try:
        shell = Shell(telemetry, time.monotonic, new_seed, identity)
        limits = Limits.of(model.fns, engine)
        text = TextEngine(model.tokenizer, config, engine.all_slots, limits, shell)
        text.start(make_loop)
    finally:
        compiled.cancel()
    return text


def follow(model: Model, compiled: CompiledSteps) -> None:
    """Runs what process 0 orders, until it lets this one go.

    Raises:
        EngineFailed: Another process is lost.
    """
    device = Device(compiled, model.params, model.engine, NoOrders())
    try:
        Broadcast(compiled.steps, model.engine).follow(device.follow)
    except (ValueError, jax.errors.JaxRuntimeError) as error:
        raise EngineFailed(f"another process is lost: {error}") from error


def _place(config: ServerConfig, partition_rules: PartitionRules = ()) -> Place:
    if config.num_processes != jax.process_count():
        allowed = f"{jax.process_count()} here; `jaxserver serve` joins several"
        raise InvalidConfig("num_processes", str(config.num_processes), allowed)
    shape, names = config.mesh_axes_shape, config.mesh_axes_names
    mesh = make_mesh(shape, names, jax.devices())
    return Place(mesh, read_rules(partition_rules))


def _plan(config: ServerConfig, backend: Backend, engine: EngineConfig) -> MemoryPlan:
    place = (backend.place.mesh, backend.kept)
    specs, computed = leaves(backend.specs), _compute(config).dtype
    return plan_memory(config.model, specs, backend.fns, engine, place, computed)


def _said(plan: MemoryPlan) -> MemoryPlan:
    """Says what the mesh cannot cut."""
    if plan.undivided:
        sizes = ", ".join(plan.undivided)
        LOGGER.warning("whole, as the mesh does not divide their sizes: %s", sizes)
    return plan


def _compute(config: ServerConfig) -> Compute:
    device = jax.devices()[0]
    capability = getattr(device, "compute_capability", "")
    dtype, known = DTYPES[config.dtype], multiplies_bytes()
    return compute_on(device.platform, capability, dtype, adds_products=known)


def _keep_compiled_code() -> None:
    """Keeps compiled code between starts, unless JAX has been told where already."""
    if getattr(jax.config, "jax_compilation_cache_dir", None) is None:
        keep_compiled_code(cache_folder() / "compiled")
