"""What can run a model: the native transformer, or a Flax class of transformers."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

from jax.sharding import Mesh

from jaxserver.adapters.checkpoints.torch_names import as_huggingface
from jaxserver.adapters.flax_models.loading import empty_model
from jaxserver.adapters.flax_models.models import FlaxModel, flax_model
from jaxserver.adapters.flax_models.weights import flax_weights
from jaxserver.core.families import llama
from jaxserver.core.loading import load_params, load_tree, place_params, read_config
from jaxserver.core.params import param_specs
from jaxserver.core.partition_rules import param_specs_of
from jaxserver.core.transformer import transformer_fns
from jaxserver.ports.config import ServerConfig
from jaxserver.ports.errors import UnsupportedModel
from jaxserver.ports.model import ModelFns, Params
from jaxserver.ports.progress import Progress
from jaxserver.ports.tensors import Checkpoint

Dtypes: TypeAlias = tuple[str, str]
Load: TypeAlias = Callable[[Mesh, Dtypes, Progress], Params]


class Backend(NamedTuple):
    """A model that was looked at but not read.

    Attributes:
        fns: Its functions.
        specs: A tree of `ParamSpec`.
        load: Reads its weights, places them on a mesh, rounds them to the first type
            and keeps them in the second.
        end_ids: Tokens that end an answer, besides those the tokenizer knows.
    """

    fns: ModelFns
    specs: Any
    load: Load
    end_ids: frozenset[int] = frozenset()


def is_native(checkpoint: Checkpoint, config: ServerConfig) -> bool:
    """Whether the native transformer runs it, chosen or forced.

    Raises:
        UnsupportedModel: The Flax class is forced on a GGUF file.
    """
    if checkpoint.layout == "gguf" and config.backend == "flax":
        raise UnsupportedModel(f"{checkpoint.path} by a Flax class", "it natively")
    if config.backend != "auto" or checkpoint.layout == "gguf":
        return config.backend != "flax"
    return checkpoint.config.get("model_type") in llama.MODEL_TYPES


def backend_of(checkpoint: Checkpoint, config: ServerConfig, dtype: str) -> Backend:
    """What runs a checkpoint.

    Args:
        checkpoint: As it was found.
        config: Says which, if one is forced.
        dtype: What a Flax class computes in.

    Raises:
        BrokenCheckpoint: A tensor is missing, surplus or of another shape.
        UnsupportedModel: It cannot be run so; says what can.
    """
    if is_native(checkpoint, config):
        return _native(checkpoint, config)
    model = empty_model(checkpoint, dtype)
    flax, specs = _flax(model, config, dtype)
    named = flax_weights(checkpoint, model)

    def load(mesh: Mesh, dtypes: Dtypes, progress: Progress) -> Params:
        return load_tree(specs, named, mesh, dtypes, progress)

    return Backend(flax.fns, specs, load, flax.end_ids)


def backend_in_memory(
    model: Any, params: Params, config: ServerConfig, dtype: str
) -> Backend:
    """A Flax model that is there; without `params` those that it holds are taken."""
    flax, specs = _flax(model, config, dtype)

    def load(mesh: Mesh, dtypes: Dtypes, progress: Progress) -> Params:
        return place_params(specs, params or model.params, mesh, dtypes)

    return Backend(flax.fns, specs, load, flax.end_ids)


def _native(checkpoint: Checkpoint, config: ServerConfig) -> Backend:
    if checkpoint.layout == "flax":
        checkpoint = as_huggingface(checkpoint)
    known = read_config(checkpoint)

    def load(mesh: Mesh, dtypes: Dtypes, progress: Progress) -> Params:
        return load_params(known, checkpoint, mesh, dtypes, progress)

    fns = transformer_fns(known, min(config.max_length, known.max_len))
    return Backend(fns, param_specs(known), load)


def _flax(model: Any, config: ServerConfig, dtype: str) -> tuple[FlaxModel, Any]:
    flax = flax_model(model, config.max_length, dtype)
    return flax, param_specs_of(flax.shapes, model.config.model_type)
