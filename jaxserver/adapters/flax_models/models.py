"""From a `FlaxPreTrainedModel` to what the engine runs, with its parameters' shapes."""

import copy
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxserver.adapters.flax_models.decoders import decoder
from jaxserver.adapters.flax_models.encoder_decoders import encoder_decoder
from jaxserver.adapters.flax_models.loading import without_weights
from jaxserver.adapters.flax_models.mends import mend
from jaxserver.adapters.flax_models.row_fns import fns_of
from jaxserver.adapters.flax_models.rules import answer_rules, decoder_prompt, end_ids
from jaxserver.adapters.flax_models.settings import most_tokens, parts_of, served_config
from jaxserver.adapters.flax_models.sizes import first_position, sizes_of
from jaxserver.ports.errors import UnsupportedModel
from jaxserver.ports.model import ModelFns, Params

SUPPORTED = "classes with a language-model head: causal, or with an encoder for text"
_POSITIONS = "max_position_embeddings"


class FlaxModel(NamedTuple):
    """A model, ready to run on parameters that are given with every call.

    Attributes:
        shapes: Of its parameters.
        end_ids: Tokens that end an answer.
    """

    fns: ModelFns
    shapes: Params
    end_ids: frozenset[int]


def flax_model(model: Any, max_length: int, dtype: Any = jnp.float32) -> FlaxModel:
    """Wraps a model of transformers' classes, or of a class of the user's own.

    Args:
        model: It keeps its own configuration; one for serving is made from it.
        max_length: Longest sequence that is wanted.
        dtype: What it computes in.

    Raises:
        UnsupportedModel: It has no language-model head, reads no text, or has a setting
            that its class does not apply.
    """
    _check_kind(model)
    mend()
    config = served_config(model.config, not model.config.is_encoder_decoder)
    served, positions = _fitted(model, config, max_length, dtype)
    bounds = (positions, most_tokens(model.config))
    bound = min((count for count in bounds if count is not None), default=None)
    sizes = sizes_of(max_length, bound, _vocab_size(served.config))
    rules = answer_rules(model.generation_config)
    if model.config.is_encoder_decoder:
        parts = encoder_decoder(served, sizes, sizes.max_len)
        fns = fns_of(parts.row_fns, sizes, rules)._replace(
            encode=parts.encode,
            encoder_lengths=parts.encoder_lengths,
            decoder_prompt=decoder_prompt(model),
        )
    else:
        fns = fns_of(decoder(served, sizes), sizes, rules)
    return FlaxModel(fns, served.params_shape_tree, end_ids(model.generation_config))


def _check_kind(model: Any) -> None:
    name = type(model).__name__
    if not getattr(model, "can_generate", lambda: False)():
        raise UnsupportedModel(f"{name}, whose can_generate() is not true,", SUPPORTED)
    if model.main_input_name != "input_ids":
        raise UnsupportedModel(f"{name}, which reads no token ids,", SUPPORTED)
    if not hasattr(getattr(model.config, "decoder", model.config), "vocab_size"):
        raise UnsupportedModel(f"{name}, whose config has no vocab_size,", SUPPORTED)


def _fitted(
    model: Any, config: Any, max_length: int, dtype: Any
) -> tuple[Any, int | None]:
    """A model whose masks and tables are as long as its rows, and no longer.

    Returns it, and how many positions it knows, None where it can go on for ever.
    """
    learned = getattr(config, _POSITIONS, None)
    if learned is None:
        return without_weights(type(model), config, dtype), _composed_positions(config)
    known = learned - first_position(config)
    if not type(model.module).__module__.startswith("transformers."):
        # What a class of the user's own does with the number is not known.
        return without_weights(type(model), config, dtype), known
    cut = copy.deepcopy(config)
    setattr(cut, _POSITIONS, min(learned, sizes_of(max_length, None, 1).capacity))
    served = without_weights(type(model), cut, dtype)
    if _shapes(served.params_shape_tree) == _shapes(model.params_shape_tree):
        return served, learned
    return without_weights(type(model), config, dtype), known


def _composed_positions(config: Any) -> int | None:
    """The fewer of an encoder's and a decoder's, where a model is made of the two."""
    counts = [
        getattr(part, _POSITIONS) - first_position(part)
        for part in parts_of(config)
        if getattr(part, _POSITIONS, None) is not None
    ]
    return min(counts, default=None)


def _shapes(params: Params) -> list[tuple[int, ...]]:
    return [leaf.shape for leaf in jax.tree.leaves(params)]


def _vocab_size(config: Any) -> int:
    vocab: int = getattr(config, "decoder", config).vocab_size
    return vocab
