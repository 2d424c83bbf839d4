"""From a checkpoint's settings to a model of a Flax class, without its weights."""

import importlib.util
import logging
from pathlib import Path
from typing import Any

import jax

from jaxserver.adapters.flax_models.mends import mend
from jaxserver.adapters.flax_models.settings import served_config
from jaxserver.adapters.flax_models.weights import flax_weights
from jaxserver.ports.errors import BrokenCheckpoint, UnsupportedModel
from jaxserver.ports.tensors import Checkpoint

LOGGER = logging.getLogger("jaxserver")
SUPPORTED = (
    "llama natively, and the Flax classes of transformers for causal or "
    "sequence-to-sequence text; a class of your own by JAXServer.load_from_params"
)


def empty_model(checkpoint: Checkpoint, dtype: Any) -> Any:
    """A model of the class that the checkpoint is for; of weights it knows the shapes.

    Raises:
        BrokenCheckpoint: `generation_config.json` cannot be read.
        UnsupportedModel: There is no such class, or no Flax to run it.
    """
    if importlib.util.find_spec("flax") is None:
        model = f"model type {checkpoint.config.get('model_type')!r} without Flax"
        raise UnsupportedModel(
            model, "llama natively; more after `pip install 'jaxserver[flax]'`"
        )
    mend()
    config = _config(checkpoint)
    served_config(config, not config.is_encoder_decoder)  # refuses what it cannot mend
    model = without_weights(_class(config), config, dtype)
    if (Path(checkpoint.path) / "generation_config.json").exists():
        model.generation_config = _generation_config(checkpoint.path)
    return model


def model_from_pytorch(checkpoint: Checkpoint, dtype: Any) -> Any:
    """The model with its weights, by its class's own way from PyTorch.

    That way fills in random numbers where a weight is missing, so what is there is
    looked at first.

    Raises:
        BrokenCheckpoint: A tensor is missing, surplus or of another shape.
        UnsupportedModel: The class does not take such files.
    """
    empty = empty_model(checkpoint, dtype)
    flax_weights(checkpoint, empty)
    kind = type(empty)
    try:
        return kind.from_pretrained(checkpoint.path, from_pt=True, dtype=dtype)
    except NotImplementedError as error:
        raise UnsupportedModel(
            f"{checkpoint.path} by {kind.__name__}.from_pretrained ({error})",
            "safetensors in shards by JAXServer.load(folder), which needs no PyTorch",
        ) from error


def _config(checkpoint: Checkpoint) -> Any:
    from transformers import AutoConfig  # noqa: PLC0415  # slow

    try:
        return AutoConfig.from_pretrained(
            checkpoint.path, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # it raises whatever its many classes raise
        kind = checkpoint.config.get("model_type")
        message = str(error).strip().split("\n")[0][:200]
        raise UnsupportedModel(f"model type {kind!r} ({message})", SUPPORTED) from error


def _generation_config(path: str) -> Any:
    from transformers import GenerationConfig  # noqa: PLC0415  # slow

    try:
        return GenerationConfig.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError) as error:
        file = str(Path(path) / "generation_config.json")
        raise BrokenCheckpoint(
            file, None, expected="generation settings", found=str(error)[:200]
        ) from error


def _class(config: Any) -> Any:
    """The class that `architectures` names, else the one for the model type.

    PyTorch's names are taken for those of their Flax twins.
    """
    import transformers  # noqa: PLC0415  # slow
    from transformers.models.auto import modeling_flax_auto as auto  # noqa: PLC0415

    named = config.architectures or []
    known = {
        *auto.FLAX_MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values(),
        *auto.FLAX_MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES.values(),
    }
    for name in (f"{prefix}{name}" for name in named for prefix in ("", "Flax")):
        if name in known:
            return getattr(transformers, name)
    kind = _class_of_type(config)
    own_names = {kind.__name__, kind.__name__[4:]}  # it saves itself without "Flax"
    for name in named:
        if name not in own_names and not hasattr(transformers, name):
            raise UnsupportedModel(f"architecture {name!r}", SUPPORTED)
    if named and own_names.isdisjoint(named):
        LOGGER.warning("a model saved as %s is served as %s", named[0], kind.__name__)
    return kind


def _class_of_type(config: Any) -> Any:
    from transformers.models.auto import modeling_flax_auto as auto  # noqa: PLC0415

    mapping = (
        auto.FLAX_MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING
        if config.is_encoder_decoder
        else auto.FLAX_MODEL_FOR_CAUSAL_LM_MAPPING
    )
    if type(config) not in mapping:
        raise UnsupportedModel(f"model type {config.model_type!r}", SUPPORTED)
    return mapping[type(config)]


def without_weights(kind: Any, config: Any, dtype: Any) -> Any:
    """A model of a class; of one that cannot be made without weights, their shapes.

    Raises:
        UnsupportedModel: The class does not take these settings.
    """
    try:
        if config.model_type != "encoder-decoder":
            return kind(config, dtype=dtype, _do_init=False)
        made: list[Any] = []
        jax.eval_shape(lambda: made.append(kind(config, dtype=dtype)))
    except Exception as error:  # it raises whatever its many classes raise
        model = f"{kind.__name__} with these settings ({error})"
        raise UnsupportedModel(model, "settings that its class takes") from error
    (model,) = made
    model._params, model._is_initialized = None, False
    model.key = jax.random.key(0)
    return model
