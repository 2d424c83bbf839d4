"""What can run a model: the native transformer, or a Flax class of transformers."""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

from jax.sharding import Mesh

from jaxserver.adapters.checkpoints.digest import files_digest
from jaxserver.adapters.checkpoints.torch_names import as_huggingface
from jaxserver.adapters.flax_models.loading import empty_model
from jaxserver.adapters.flax_models.models import FlaxModel, flax_model
from jaxserver.adapters.flax_models.weights import (
    flax_weights,
    params_digest,
    plain_params,
)
from jaxserver.core.families import llama
from jaxserver.core.kv_cache import cache_dtype
from jaxserver.core.loading import (
    check_shapes,
    load_params,
    load_tree,
    place_params,
    read_config,
)
from jaxserver.core.params import kept_as, param_specs
from jaxserver.core.partition_rules import Rules, param_specs_of, with_rules
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
        place: Where it is to lie.
        kept: The type that its weights are kept in.
        load: Reads its weights, rounds them to the configured type and places them.
        digest: Reads its weights as they are found, and says which they are.
        end_ids: Tokens that end an answer, besides those the tokenizer knows.
        made_of: What `fns` are made of besides our own code; None where somebody
            else's code is in them.
    """

    kind: Literal["native", "flax"]
    fns: ModelFns
    specs: Any
    place: Place
    kept: str
    load: Load
    digest: Callable[[], str]
    end_ids: frozenset[int] = frozenset()
    made_of: str | None = None


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
    checkpoint: Checkpoint, config: ServerConfig, place: Place, dtype: str
) -> Backend:
    """What runs a checkpoint.

    Args:
        checkpoint: As it was found.
        config: Says which, if one is forced.
        place: Where it is to lie.
        dtype: What is computed in.

    Raises:
        BrokenCheckpoint: A tensor is missing, surplus or of another shape.
        UnsupportedModel: It cannot be run so; says what can.
    """
    if is_native(checkpoint, config):
        return _native(checkpoint, config, place, dtype)
    model = empty_model(checkpoint, dtype)
    flax, specs = _flax(model, config, place, dtype)
    named = flax_weights(checkpoint, model)

    dtypes = (DTYPES[config.dtype], dtype)

    def load(progress: Progress) -> Params:
        return load_tree(specs, named, place.mesh, dtypes, progress)

    digest = functools.partial(files_digest, checkpoint.files)
    return Backend("flax", flax.fns, specs, place, dtype, load, digest, flax.end_ids)


def backend_in_memory(
    model: Any, params: Params, config: ServerConfig, place: Place, dtype: str
) -> Backend:
    """A Flax model that is there; without `params` those that it holds are taken."""
    flax, specs = _flax(model, config, place, dtype)
    dtypes = (DTYPES[config.dtype], dtype)

    given = plain_params(params or model.params)

    def load(progress: Progress) -> Params:
        return place_params(specs, given, place.mesh, dtypes)

    digest = functools.partial(params_digest, given)
    return Backend("flax", flax.fns, specs, place, dtype, load, digest, flax.end_ids)


def _native(
    checkpoint: Checkpoint, config: ServerConfig, place: Place, dtype: str
) -> Backend:
    """Told not to compress, it keeps weights as they are and widens them one by one."""
    if checkpoint.layout == "flax":
        checkpoint = as_huggingface(checkpoint)
    known = read_config(checkpoint)
    check_shapes(known, checkpoint)

    rounded, mesh = DTYPES[config.dtype], place.mesh
    kept = {"auto": dtype, "none": rounded, "int8": "int8"}[config.quantize]
    specs = kept_as(with_rules(param_specs(known), place.rules), kept)
    dtypes = (rounded, kept)

    def load(progress: Progress) -> Params:
        return load_params(known, checkpoint, mesh, dtypes, progress, place.rules)

    max_len = min(config.max_length, known.max_len)
    cached = cache_dtype(kept)
    fns = transformer_fns(known, max_len, config.page_size, mesh, cached)
    digest = functools.partial(files_digest, checkpoint.files)
    backend = Backend("native", fns, specs, place, kept, load, digest)
    return backend._replace(made_of=repr((known, max_len, config.page_size, cached)))


def _flax(
    model: Any, config: ServerConfig, place: Place, dtype: str
) -> tuple[FlaxModel, Any]:
    if config.page_size is not None:
        allowed = "none: the cache of a Flax class has whole sequences"
        raise InvalidConfig("page_size", str(config.page_size), allowed)
    if config.quantize == "int8":
        got = f"'int8' for {type(model).__name__}"
        allowed = "auto, none: a Flax class multiplies as it was written, in floats"
        raise InvalidConfig("quantize", got, allowed)
    flax = flax_model(model, config.max_length, dtype)
    specs = param_specs_of(flax.shapes, model.config.model_type)
    return flax, with_rules(specs, place.rules)
