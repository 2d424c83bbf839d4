"""Tiny models of eight heads on a mesh, with their steps, each compiled once."""

import concurrent.futures
import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import numpy as np
import transformers
from transformers.models.auto import modeling_flax_auto as auto

from jaxserver.adapters.flax_models.mends import mend
from jaxserver.adapters.flax_models.models import flax_model
from jaxserver.core.compute import ON_CPU, Compute
from jaxserver.core.config import EngineConfig, ModelConfig
from jaxserver.core.executables import build_steps, on_devices
from jaxserver.core.kv_cache import cache_dtype
from jaxserver.core.loading import place_params
from jaxserver.core.memory import plan_memory
from jaxserver.core.params import ParamSpec, init_params, kept_as, leaves, param_specs
from jaxserver.core.partition_rules import param_specs_of
from jaxserver.core.sharding import make_mesh, num_devices
from jaxserver.core.transformer import transformer_fns
from jaxserver.ports.memory import MemoryPlan
from jaxserver.ports.model import ModelFns, Params, TokenBatch
from jaxserver.ports.types import SamplingParams
from tests.stepping import Part, Stepper, Wish, drawn
from tests.tiny import TINY_LLAMA, quantized
from tests.tiny_flax import CAUSAL, SEQ_TO_SEQ, TinyFlax, enlarged

Shape = tuple[int, int, int]
NAMES = ("dp", "fsdp", "mp")
ONE: Shape = (1, 1, 1)
MESHES: list[Shape] = [(1, 8, 1), (2, 2, 2), (1, 1, 8), (8, 1, 1), (1, -1, 1)]
MAX_LEN, SLOTS, ANSWER = 48, 8, 6
FEW_HEADS = "native with few heads"
INT8 = "native in int8"
NATIVE: dict[str, ModelConfig] = {
    "native": dataclasses.replace(TINY_LLAMA, num_heads=16, num_kv_heads=8, embed=64),
    FEW_HEADS: TINY_LLAMA,
    INT8: dataclasses.replace(TINY_LLAMA, num_heads=16, num_kv_heads=8, embed=64),
}
GPUS = Compute(platform="cuda", is_interpreted=True)
BUILT: dict[str, Compute] = {"built for a CPU": ON_CPU, "built for GPUs": GPUS}
"""Alike, with heads that are wide enough for a kernel."""
FLAX: dict[str, dict[str, int]] = {
    "gpt2": {"n_head": 8},
    "llama": {"num_attention_heads": 8, "num_key_value_heads": 8},
    "opt": {"num_attention_heads": 8},
    "t5": {"num_heads": 8},
}
WISHES = {
    slot: Wish(
        prompt=tuple(np.random.default_rng(slot).integers(3, 64, length).tolist()),
        sampling=SamplingParams(greedy=True, logprobs=20),
        limit=MAX_LEN,
    )
    for slot, length in ((0, 5), (3, 23), (7, 17))
}


class Tiny(NamedTuple):
    """A model on its devices."""

    fns: ModelFns
    specs: list[ParamSpec]
    steps: Stepper
    plan: MemoryPlan
    mesh: jax.sharding.Mesh


def tiny(kind: str, shape: Shape) -> Tiny:
    """One of those, its weights and its rows cut as the mesh says."""
    devices = jax.devices()[: 1 if shape == ONE else 8]
    return _tiny(kind, make_mesh(shape, NAMES, devices))


@functools.cache
def _tiny(kind: str, mesh: jax.sharding.Mesh) -> Tiny:
    is_native = kind in (*NATIVE, *BUILT)
    fns, specs, params = _native(kind, mesh) if is_native else _flax(kind)
    engine = EngineConfig(
        slots=SLOTS,
        max_len=fns.max_len,
        max_stream_tokens=8,
        chunk=fns.chunk,
        encoder_lengths=fns.encoder_lengths,
        row_parts=num_devices("batch", mesh),
    )
    placed = place_params(specs, params, mesh, ("float32", "float32"))
    kept = "int8" if kind == INT8 else "float32"
    plan = plan_memory(kind, leaves(specs), fns, engine, (mesh, kept))
    steps = Stepper(build_steps(fns, placed, engine, mesh), placed, engine)
    served = on_devices(fns, placed, mesh)
    return Tiny(served, leaves(specs), steps, plan, mesh)


def _native(kind: str, mesh: jax.sharding.Mesh) -> tuple[ModelFns, Any, Params]:
    wide = dataclasses.replace(NATIVE["native"], head_dim=16)
    config, compute = NATIVE.get(kind, wide), BUILT.get(kind, ON_CPU)
    kept = cache_dtype("int8" if kind == INT8 else "float32")
    fns = transformer_fns(config, MAX_LEN, mesh=mesh, cache_dtype=kept, compute=compute)
    specs, params = param_specs(config), enlarged(init_params(config, seed=0))
    if kind == INT8:
        return fns, kept_as(specs, "int8"), quantized(config, params)
    return fns, specs, params


def _flax(kind: str) -> tuple[ModelFns, Any, Params]:
    model, params = unmade(kind, **FLAX[kind])
    flax = flax_model(model, MAX_LEN)
    specs = param_specs_of(flax.shapes, model.config.model_type)
    return flax.fns, specs, params


def unmade(kind: str, **settings: int) -> TinyFlax:
    """A tiny model whose class did not draw its parameters, which takes it seconds."""
    mend()
    names = {
        **auto.FLAX_MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
        **auto.FLAX_MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    }
    tiny = {**SEQ_TO_SEQ, **CAUSAL}[kind]
    config = transformers.AutoConfig.for_model(kind, **{**tiny, **settings})
    model = getattr(transformers, names[kind])(config, _do_init=False)

    rng = np.random.default_rng(0)

    def begin(path: tuple[Any, ...], shape: Any) -> Any:
        is_scale = path[-1].key in ("scale", "weight")
        noise = rng.standard_normal(shape.shape).astype(np.float32) * 0.25
        return noise + np.float32(is_scale)

    shapes = model.params_shape_tree
    params = jax.tree_util.tree_map_with_path(begin, shapes)
    return TinyFlax(model, params)


def prefill_length(engine: EngineConfig) -> int:
    """One padded length that is long enough for each of `WISHES`."""
    return next(length for length in engine.prefill_lengths if length >= 24)


class Answers(NamedTuple):
    """What a model says to `WISHES`.

    Attributes:
        logits: Of four more tokens of every row, right after the prompts.
        tokens: Of the greedy answer to each prompt.
        logprobs: Of the likeliest tokens in their places.
    """

    logits: np.ndarray
    tokens: list[list[int]]
    logprobs: np.ndarray


def answers(kind: str, shape: Shape) -> Answers:
    """The prompts run one after the other, then decoded together."""
    model = tiny(kind, shape)
    return _answers(model.fns, model.steps)


@functools.cache
def _answers(fns: ModelFns, steps: Stepper) -> Answers:
    time = prefill_length(steps.engine)
    extend: Any = jax.jit(fns.extend)
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        pool.submit(steps.get, "prefill", time)
        pool.submit(steps.get, "decode", SLOTS)
        pool.submit(extend, steps.params, steps.state.cache, _more(fns)).result()
    steps.clear()
    firsts = {
        slot: steps.prefill(Part(wish=wish, slot=slot), time=time)
        for slot, wish in WISHES.items()
    }
    logits, _ = extend(steps.params, steps.state.cache, _more(fns))
    rest = steps.decode(SLOTS, ANSWER)
    logprobs = [
        np.concatenate([first.top_logprobs[0], rest.top_logprobs[slot]])
        for slot, first in firsts.items()
    ]
    return Answers(
        np.asarray(logits),
        [[*drawn(first, 0), *drawn(rest, slot)] for slot, first in firsts.items()],
        np.stack(logprobs),
    )


def _more(fns: ModelFns) -> TokenBatch:
    """Tokens of no meaning for every row, behind what it holds."""
    start, length = np.zeros((2, SLOTS), np.int32)
    for slot, wish in WISHES.items():
        start[slot] = len(fns.decoder_prompt) or len(wish.prompt)
        length[slot] = 4
    arrays: dict[str, Any] = dict(
        tokens=np.random.default_rng(9).integers(3, 64, (SLOTS, 4)).astype(np.int32),
        start=start,
        length=length,
        page_table=None,
        logits_at=np.tile(np.arange(4, dtype=np.int32), (SLOTS, 1)),
    )
    return TokenBatch(**arrays)
