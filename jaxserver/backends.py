"""What can run a model: the native transformer, or a Flax class of transformers."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
from jax.sharding import Mesh

from jaxserver.adapters.checkpoints.cache import cache_folder
from jaxserver.adapters.checkpoints.digest import files_digest
from jaxserver.adapters.checkpoints.locate import locate, open_checkpoint
from jaxserver.adapters.checkpoints.torch_names import as_huggingface
from jaxserver.adapters.engine.kernels import register_kernels
from jaxserver.adapters.flax_models.loading import empty_model
from jaxserver.adapters.flax_models.models import FlaxModel, flax_model
from jaxserver.adapters.flax_models.weights import (
    flax_weights,
    params_digest,
    plain_params,
)
from jaxserver.core.compute import Compute
from jaxserver.core.executables import abstract
from jaxserver.core.families import llama
from jaxserver.core.kv_cache import cache_dtype
from jaxserver.core.loading import (
    check_shapes,
    load_params,
    load_tree,
    place_params,
    read_config,
    shapes_of,
)
from jaxserver.core.ops.fp8 import FP8
from jaxserver.core.params import kept_as, param_specs
from jaxserver.core.partition_rules import Rules, param_specs_of, with_rules
from jaxserver.core.speculative import Pair, with_draft_model
from jaxserver.core.transformer import transformer_fns
from jaxserver.ports.config import DTYPES, ServerConfig
from jaxserver.ports.errors import InvalidConfig, UnsupportedModel
from jaxserver.ports.model import ModelFns, Params
from jaxserver.ports.progress import Progress
from jaxserver.ports.tensors import Checkpoint

Load: TypeAlias = Callable[[Progress], Params]


class Place(NamedTuple):
    """Where weights go: the devices, and the user's own rules."""

    mesh: Mesh
    rules: Rules = ()


class Backend(NamedTuple):
    """A model that was looked at but not read.

    Attributes:
        kind: Which of the two it is.
        fns: Its functions.
        specs: A tree of `ParamSpec`.
        shapes: Of what `load` places, with their shardings.
        place: Where it is to lie.
        kept: The type that its weights are kept in.
        load: Reads its weights, rounds them to the configured type and places them.
        digest: Reads its weights as they are found, and says which they are.
        end_ids: Tokens that end an answer, besides those the tokenizer knows.
        made_of: What `fns` are made of besides our own code; None where somebody
            else's code is in them.
        kernels: See `Compute`.
    """

    kind: Literal["native", "flax"]
    fns: ModelFns
    specs: Any
    shapes: Any
    place: Place
    kept: str
    load: Load
    digest: Callable[[], str]
    end_ids: frozenset[int] = frozenset()
    made_of: str | None = None
    kernels: str = ""


def is_native(checkpoint: Checkpoint, config: ServerConfig) -> bool:
    """Whether the native transformer runs it, chosen or forced.

    Raises:
        UnsupportedModel: The Flax class is forced on a GGUF file.
    """
    if checkpoint.layout == "gguf" and config.backend == "flax":
        raise UnsupportedModel(f"{checkpoint.path} by a Flax class", "it natively")
    if config.backend != "auto" or checkpoint.layout == "gguf":
        return config.backend != "flax"
    return llama.is_known(checkpoint.config)


def backend_of(
    checkpoint: Checkpoint,
    config: ServerConfig,
    place: Place,
    compute: Compute,
    progress: Progress,
) -> Backend:
    """What runs a checkpoint, and what guesses for it.

    Args:
        checkpoint: As it was found.
        config: Says which, if one is forced.
        place: Where it is to lie.
        compute: On what and in what it is computed.
        progress: Hears how far downloading the smaller model is, if one guesses.

    Raises:
        InvalidConfig: The smaller model does not go with the other.
        BrokenCheckpoint: A tensor is missing, surplus or of another shape.
        UnsupportedModel: It cannot be run so; says what can.
    """
    backend = _alone(checkpoint, config, place, compute)
    if not has_draft(config):
        return backend
    draft = open_checkpoint(locate(config.speculate, progress))
    same = dataclasses.replace(config, max_length=backend.fns.max_len)
    return with_draft(backend, _alone(draft, same, place, compute), config.speculate)


def has_draft(config: ServerConfig) -> bool:
    """A smaller model guesses tokens."""
    return config.speculate not in ("ngram", "none")


def _alone(
    checkpoint: Checkpoint, config: ServerConfig, place: Place, compute: Compute
) -> Backend:
    if is_native(checkpoint, config):
        return _native(checkpoint, config, place, compute)
    dtype = compute.dtype
    model = empty_model(checkpoint, dtype)
    flax, specs = _flax(model, config, place, dtype)
    named = flax_weights(checkpoint, model)

    dtypes = (DTYPES[config.dtype], dtype)

    def load(progress: Progress) -> Params:
        return load_tree(specs, named, place.mesh, dtypes, progress)

    digest = functools.partial(files_digest, checkpoint.files)
    shapes = shapes_of(specs, place.mesh, dtype)
    made = (flax.fns, specs, shapes, place, dtype, load, digest, flax.end_ids)
    return Backend("flax", *made)


def with_draft(backend: Backend, draft: Backend, name: str) -> Backend:
    """The same model, for which a smaller one guesses tokens.

    Args:
        backend: The model.
        draft: The smaller one, made for the same `max_length`.
        name: What the configuration calls it.

    Raises:
        InvalidConfig: The two do not go together.
    """
    fns, other = backend.fns, draft.fns
    if fns.chunk is not None or other.chunk is not None:
        allowed = "ngram or none where a Flax class runs the model or the draft"
        raise InvalidConfig("speculate", name, allowed)
    if fns.vocab_size != other.vocab_size:
        got = f"{name}, with a vocabulary of {other.vocab_size}"
        allowed = f"a model with the vocabulary of the one served, {fns.vocab_size}"
        raise InvalidConfig("speculate", got, allowed)
    if other.max_len < fns.max_len:
        got = f"{name}, made for {other.max_len} tokens"
        raise InvalidConfig("speculate", got, f"a model for {fns.max_len} tokens")

    def load(progress: Progress) -> Params:
        return Pair(backend.load(progress), draft.load(progress))

    specs = Pair(backend.specs, draft.specs)
    shapes = Pair(backend.shapes, draft.shapes)
    made_of = repr((backend.made_of, draft.made_of))
    both = with_draft_model(fns, other)
    same = backend._replace(fns=both, specs=specs, shapes=shapes)
    return same._replace(load=load, made_of=made_of)


def backend_in_memory(
    model: Any, params: Params, config: ServerConfig, place: Place, dtype: str
) -> Backend:
    """A Flax model that is there; without `params` those that it holds are taken."""
    flax, specs = _flax(model, config, place, dtype)
    dtypes = (DTYPES[config.dtype], dtype)

    given = plain_params(params or model.params)
    placed = place_params(specs, given, place.mesh, dtypes)
    digest = functools.partial(params_digest, given)
    shapes = jax.tree.map(abstract, placed)
    made = (shapes, place, dtype, lambda progress: placed, digest, flax.end_ids)
    return Backend("flax", flax.fns, specs, *made)


def _native(
    checkpoint: Checkpoint, config: ServerConfig, place: Place, compute: Compute
) -> Backend:
    """Told not to compress, it keeps weights as they are and widens them one by one."""
    if checkpoint.layout == "flax":
        checkpoint = as_huggingface(checkpoint)
    known = read_config(checkpoint)
    check_shapes(known, checkpoint)

    rounded, mesh = DTYPES[config.dtype], place.mesh
    as_asked = {"none": rounded, "int8": "int8", "fp8": FP8}
    kept = as_asked.get(config.quantize, fastest(rounded, compute))
    specs = kept_as(with_rules(param_specs(known), place.rules), kept)
    dtypes = (rounded, kept)
    kernels = _kernels(config, compute, mesh, kept)
    compute = dataclasses.replace(compute, kernels=kernels)

    def load(progress: Progress) -> Params:
        return load_params(known, checkpoint, mesh, dtypes, progress, place.rules)

    max_len = min(config.max_length, known.max_len)
    cached = cache_dtype(kept, compute.dtype)
    fns = transformer_fns(known, max_len, config.page_size, mesh, cached, compute)
    digest = functools.partial(files_digest, checkpoint.files)
    shapes = shapes_of(specs, mesh, kept)
    backend = Backend("native", fns, specs, shapes, place, kept, load, digest)
    made_of = repr((known, max_len, config.page_size, cached, compute))
    return backend._replace(made_of=made_of, kernels=kernels)


def _kernels(config: ServerConfig, compute: Compute, mesh: Mesh, kept: str) -> str:
    """Those besides the compiler's own, which cannot be cut up for a mesh."""
    if config.kernels == "xla":
        return ""
    if (compute.platform, mesh.size, kept) != ("cpu", 1, "int8"):
        got = f"native for weights in {kept} on {mesh.size} {compute.platform} devices"
        raise InvalidConfig("kernels", got, "xla; native for int8 on 1 cpu device")
    return register_kernels(cache_folder() / "kernels")


def fastest(rounded: str, compute: Compute) -> str:
    """The type that weights are kept in where nobody chose one.

    A CPU has no fast 16-bit arithmetic; in int8 it reads the least, and the answers are
    as good: see `benchmarks/quality.py`.

    Args:
        rounded: The model's type.
        compute: On what and in what it is computed.
    """
    is_16_bit = rounded != "float32"
    return "int8" if compute.platform == "cpu" and is_16_bit else compute.dtype


def _flax(
    model: Any, config: ServerConfig, place: Place, dtype: str
) -> tuple[FlaxModel, Any]:
    if config.page_size is not None:
        allowed = "none: the cache of a Flax class has whole sequences"
        raise InvalidConfig("page_size", str(config.page_size), allowed)
    if config.quantize in ("int8", "fp8"):
        got = f"{config.quantize!r} for {type(model).__name__}"
        allowed = "auto, none: a Flax class multiplies as it was written, in floats"
        raise InvalidConfig("quantize", got, allowed)
    if config.kernels != "xla":
        got = f"{config.kernels} for {type(model).__name__}"
        raise InvalidConfig("kernels", got, "xla for a Flax class")
    flax = flax_model(model, config.max_length, dtype)
    specs = param_specs_of(flax.shapes, model.config.model_type)
    return flax, with_rules(specs, place.rules)
