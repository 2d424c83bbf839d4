"""Puts a model together out of the adapters and the core."""

import dataclasses
import logging
import secrets
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from jaxserver.adapters.checkpoints.cache import cache_folder
from jaxserver.adapters.checkpoints.locate import locate, open_checkpoint
from jaxserver.adapters.engine.compiling import CompiledSteps
from jaxserver.adapters.engine.dispatch import Device
from jaxserver.adapters.engine.loop import EngineLoop, OnEvents
from jaxserver.adapters.engine.orders import Broadcast, NoOrders
from jaxserver.adapters.engine.requests import Lengths
from jaxserver.adapters.engine.text import Shell, TextEngine
from jaxserver.adapters.prompts import sources
from jaxserver.adapters.telemetry.log import LogTelemetry, NoTelemetry
from jaxserver.adapters.tokenizers import folder as folder_tokenizer
from jaxserver.adapters.tokenizers import gguf as gguf_tokenizer
from jaxserver.adapters.tokenizers.tokenizer import PieceTokenizer
from jaxserver.core.config import EngineConfig, ModelConfig
from jaxserver.core.loading import load_params, place_params, read_config
from jaxserver.core.memory import plan_memory
from jaxserver.core.params import leaves, param_specs
from jaxserver.core.partition_rules import param_specs_of
from jaxserver.core.sharding import make_mesh
from jaxserver.core.steps import build_steps
from jaxserver.core.transformer import transformer_fns
from jaxserver.ports.config import DTYPES, ServerConfig
from jaxserver.ports.errors import EngineFailed
from jaxserver.ports.memory import MemoryPlan
from jaxserver.ports.model import ModelFns, Params
from jaxserver.ports.progress import Progress
from jaxserver.ports.prompt import PromptFormatter
from jaxserver.ports.tensors import Checkpoint
from jaxserver.ports.tokenizer import Tokenizer

LOGGER = logging.getLogger("jaxserver")
DEFAULT_SLOTS = {"cpu": 8}
ACCELERATOR_SLOTS = 32


class Model(NamedTuple):
    """A model in memory, with everything that makes text of its tokens.

    Attributes:
        plan: The memory it was said to take.
    """

    fns: ModelFns
    params: Params
    tokenizer: Tokenizer
    formatter: PromptFormatter
    engine: EngineConfig
    mesh: Mesh
    plan: MemoryPlan


class _Found(NamedTuple):
    """A checkpoint that was looked at but not read."""

    checkpoint: Checkpoint
    config: ModelConfig
    fns: ModelFns
    engine: EngineConfig
    mesh: Mesh


def plan(config: ServerConfig) -> MemoryPlan:
    """What `load_model` will take, from the checkpoint's header."""
    found = _find(config, lambda stage, done, total: None)
    return _plan(config, found)


def load_model(config: ServerConfig, progress: Progress) -> Model:
    """Finds and reads a checkpoint, tokenizer and template included."""
    found = _find(config, progress)
    path = Path(found.checkpoint.path)
    if found.checkpoint.layout == "gguf":
        metadata = found.checkpoint.config
        tokenizer: Tokenizer = gguf_tokenizer.from_gguf(metadata)
        formatter = sources.from_metadata(metadata)
    else:
        tokenizer = folder_tokenizer.from_folder(path)
        formatter = sources.from_folder(path)
    dtypes = (DTYPES[config.dtype], _kept_dtype(config))
    if dtypes[0] != _computed_dtype(config):
        LOGGER.info(
            "%s weights are computed in %s on this device",
            dtypes[0],
            _computed_dtype(config),
        )
    params = load_params(found.config, found.checkpoint, found.mesh, dtypes, progress)
    return Model(
        fns=found.fns,
        params=params,
        tokenizer=tokenizer,
        formatter=formatter,
        engine=found.engine,
        mesh=found.mesh,
        plan=_plan(config, found),
    )


def take_model(
    model: Any, params: Params, tokenizer: Any, config: ServerConfig
) -> Model:
    """Serves a `FlaxPreTrainedModel` that is in memory already.

    Args:
        model: Of a class of transformers' or of the user's own.
        params: Its parameters, or None for those that it holds itself.
        tokenizer: One of transformers'.
        config: The configuration.
    """
    from jaxserver.adapters.flax_models.models import flax_model  # noqa: PLC0415  # slow

    kept = _computed_dtype(config)
    flax = flax_model(model, config.max_length, kept)
    engine, mesh = _engine(config, flax.fns), _mesh(config)
    specs = param_specs_of(flax.shapes, model.config.model_type)
    reader, formatter = _saved(model, tokenizer)
    place = (mesh, kept)
    return Model(
        fns=flax.fns,
        params=place_params(specs, params or model.params, mesh, kept),
        tokenizer=dataclasses.replace(reader, eos_ids=reader.eos_ids | flax.end_ids),
        formatter=formatter,
        engine=engine,
        mesh=mesh,
        plan=plan_memory(config.model, leaves(specs), flax.fns, engine, place),
    )


def _saved(model: Any, tokenizer: Any) -> tuple[PieceTokenizer, PromptFormatter]:
    """Our tokenizer and formatter, by way of the files that transformers writes."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        model.config.save_pretrained(folder)
        return folder_tokenizer.from_folder(folder), sources.from_folder(folder)


def compile_model(
    model: Model, config: ServerConfig, progress: Progress
) -> CompiledSteps:
    """Compiles every step before the first request, unless told not to."""
    _keep_compiled_code()
    steps = build_steps(model.fns, model.params, model.engine, model.mesh)
    compiled = CompiledSteps(steps)
    if config.pre_compile:
        compiled.compile_all(progress)
    return compiled


def start_engine(
    model: Model,
    compiled: CompiledSteps,
    config: ServerConfig,
    new_seed: Callable[[], int] = lambda: secrets.randbits(64),
) -> TextEngine:
    """Lets the engine run."""
    shell = Shell(
        telemetry=LogTelemetry() if config.logging else NoTelemetry(),
        clock=time.monotonic,
        new_seed=new_seed,
    )
    engine = model.engine
    lengths = Lengths.of(model.fns)
    text = TextEngine(model.tokenizer, config, engine.slots, lengths, shell)

    def make_loop(on_events: OnEvents) -> EngineLoop:
        is_one = jax.process_count() == 1
        orders = NoOrders() if is_one else Broadcast(compiled.steps, engine)
        device = Device(compiled, model.params, engine, orders)
        return EngineLoop(device, engine, on_events, time.monotonic)

    text.start(make_loop)
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


def _find(config: ServerConfig, progress: Progress) -> _Found:
    checkpoint = open_checkpoint(locate(config.model, progress))
    model_config = read_config(checkpoint)
    fns = transformer_fns(model_config, min(config.max_length, model_config.max_len))
    engine, mesh = _engine(config, fns), _mesh(config)
    return _Found(checkpoint, model_config, fns, engine, mesh)


def _engine(config: ServerConfig, fns: ModelFns) -> EngineConfig:
    """The sizes that follow from what was asked for and what the model allows."""
    if fns.max_len < config.max_length:
        LOGGER.info("max_length is cut to the model's %d tokens", fns.max_len)
    platform = jax.devices()[0].platform
    return EngineConfig(
        slots=config.slots or DEFAULT_SLOTS.get(platform, ACCELERATOR_SLOTS),
        prefill_rows=config.batch_size,
        max_len=fns.max_len,
        max_stream_tokens=config.max_stream_tokens,
        chunk=fns.chunk,
        encoder_lengths=fns.encoder_lengths,
    )


def _mesh(config: ServerConfig) -> Mesh:
    shape, names = config.mesh_axes_shape, config.mesh_axes_names
    return make_mesh(shape, names, jax.devices())


def _plan(config: ServerConfig, found: _Found) -> MemoryPlan:
    specs = leaves(param_specs(found.config))
    place = (found.mesh, _kept_dtype(config))
    return plan_memory(config.model, specs, found.fns, found.engine, place)


def _kept_dtype(config: ServerConfig) -> str:
    """What weights lie in memory as; 16 bits that must be widened are the slower."""
    is_auto = config.quantize == "auto"
    return _computed_dtype(config) if is_auto else DTYPES[config.dtype]


def _computed_dtype(config: ServerConfig) -> str:
    """A CPU has no fast 16-bit arithmetic."""
    is_cpu = jax.devices()[0].platform == "cpu"
    return "float32" if is_cpu else DTYPES[config.dtype]


def _keep_compiled_code() -> None:
    """Keeps compiled code between starts, unless JAX has been told where already."""
    if getattr(jax.config, "jax_compilation_cache_dir", None) is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "compiled"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
