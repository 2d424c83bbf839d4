"""Puts a model together out of the adapters and the core."""

import logging
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
from jax.sharding import Mesh

from jaxserver.adapters.checkpoints.cache import cache_folder
from jaxserver.adapters.checkpoints.locate import locate, open_checkpoint
from jaxserver.adapters.engine.compiling import CompiledSteps
from jaxserver.adapters.engine.dispatch import Device
from jaxserver.adapters.engine.loop import EngineLoop, OnEvents
from jaxserver.adapters.engine.text import Shell, TextEngine
from jaxserver.adapters.prompts import sources
from jaxserver.adapters.telemetry.log import LogTelemetry, NoTelemetry
from jaxserver.adapters.tokenizers import folder as folder_tokenizer
from jaxserver.adapters.tokenizers import gguf as gguf_tokenizer
from jaxserver.core.config import EngineConfig, ModelConfig
from jaxserver.core.loading import load_params, read_config
from jaxserver.core.memory import plan_memory
from jaxserver.core.sharding import make_mesh
from jaxserver.core.steps import build_steps
from jaxserver.core.transformer import transformer_fns
from jaxserver.ports.config import DTYPES, ServerConfig
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
    if dtypes[0] != dtypes[1]:
        LOGGER.info("%s weights are computed in %s on this device", *dtypes)
    params = load_params(found.config, found.checkpoint, found.mesh, dtypes, progress)
    return Model(
        fns=transformer_fns(found.config, found.engine.max_len),
        params=params,
        tokenizer=tokenizer,
        formatter=formatter,
        engine=found.engine,
        mesh=found.mesh,
        plan=_plan(config, found),
    )


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
    text = TextEngine(model.tokenizer, config, engine.slots, engine.max_len, shell)

    def make_loop(on_events: OnEvents) -> EngineLoop:
        device = Device(compiled, model.params, engine)
        return EngineLoop(device, engine, on_events, time.monotonic)

    text.start(make_loop)
    return text


def _find(config: ServerConfig, progress: Progress) -> _Found:
    checkpoint = open_checkpoint(locate(config.model, progress))
    model_config = read_config(checkpoint)
    devices = jax.devices()
    slots = config.slots or DEFAULT_SLOTS.get(devices[0].platform, ACCELERATOR_SLOTS)
    engine = EngineConfig(
        slots=slots,
        prefill_rows=config.batch_size,
        max_len=min(config.max_length, model_config.max_len),
        max_stream_tokens=config.max_stream_tokens,
    )
    if engine.max_len < config.max_length:
        LOGGER.info("max_length is cut to the model's %d tokens", engine.max_len)
    mesh = make_mesh(config.mesh_axes_shape, config.mesh_axes_names, devices)
    return _Found(checkpoint, model_config, engine, mesh)


def _plan(config: ServerConfig, found: _Found) -> MemoryPlan:
    kept = _kept_dtype(config)
    return plan_memory(config.model, found.config, found.engine, found.mesh, kept)


def _kept_dtype(config: ServerConfig) -> str:
    """On a CPU, which has no fast 16-bit arithmetic, weights are kept as float32."""
    is_cpu = jax.devices()[0].platform == "cpu"
    return "float32" if is_cpu else DTYPES[config.dtype]


def _keep_compiled_code() -> None:
    """Keeps compiled code between starts, unless JAX has been told where already."""
    if getattr(jax.config, "jax_compilation_cache_dir", None) is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "compiled"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
