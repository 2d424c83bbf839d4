"""Runs a row of a causal `FlaxPreTrainedModel`, with its own cache or without one."""

import inspect
import logging
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from jaxserver.adapters.flax_models.row_fns import Extended, Piece, RowFns
from jaxserver.adapters.flax_models.rows import Row, has_cursor, with_cursor
from jaxserver.adapters.flax_models.sizes import Sizes, first_position
from jaxserver.ports.model import Params

LOGGER = logging.getLogger("jaxserver")


def decoder(model: Any, sizes: Sizes) -> RowFns:
    """One row of a model with a language-model head.

    Args:
        model: Its parameters are not used, but given with every call.
        sizes: How long its rows are.
    """
    missing = missing_of_cache(model, sizes)
    if missing is None:
        return cached(model, sizes)
    LOGGER.warning(
        "%s has no cache of its own (%s): each token runs its whole row again",
        type(model).__name__,
        missing,
    )
    return rerun(model, sizes)


def missing_of_cache(model: Any, sizes: Sizes) -> str | None:
    """Why a class cannot be run on its own cache; some take one and drop it."""
    try:
        row, extend = cached(model, sizes)
        token, start = jnp.zeros(1, jnp.int32), jnp.int32(0)
        piece = Piece(token, start)
        jax.eval_shape(extend, model.params_shape_tree, row, piece)
    except (TypeError, AttributeError, KeyError, ValueError) as error:
        return f"{type(error).__name__}: {error}".split("\n")[0]
    return None if has_cursor(row) else "no `cache_index` in it"


def cached(model: Any, sizes: Sizes) -> RowFns:
    """The row is the class's own cache of a batch of one."""
    has_positions = "position_ids" in inspect.signature(model.__call__).parameters
    first = first_position(model.config)

    def extend(params: Params, row: Row, piece: Piece) -> Extended:
        positions = {"position_ids": first + piece.positions[None]}
        output = model(
            piece.tokens[None],
            attention_mask=jnp.ones((1, sizes.capacity), jnp.int32),
            params=params,
            past_key_values=with_cursor(emptied(row, piece), piece.start),
            return_dict=True,
            **(positions if has_positions else {}),
            **_token_types(model, piece.tokens),
        )
        return output.logits[0], dict(output["past_key_values"])

    return RowFns(jax.eval_shape(lambda: model.init_cache(1, sizes.capacity)), extend)


def emptied(row: Row, piece: Piece) -> Row:
    """A row that begins anew: a number that is none would spoil it though unseen."""
    if piece.tokens.shape[0] == 1:
        return row
    return jax.tree.map(lambda leaf: jnp.where(piece.start == 0, 0, leaf), row)


def rerun(model: Any, sizes: Sizes) -> RowFns:
    """The row is its tokens; what follows the last one is there but not seen."""

    def extend(params: Params, row: Row, piece: Piece) -> Extended:
        row = row.at[piece.positions].set(piece.tokens, mode="drop")
        types = _token_types(model, row)
        output = model(row[None], params=params, return_dict=True, **types)
        return output.logits[0].at[piece.positions].get(mode="clip"), row

    return RowFns(jax.ShapeDtypeStruct((sizes.capacity,), jnp.int32), extend)


def _token_types(model: Any, tokens: Int[Array, " time"]) -> dict[str, Array]:
    """A text is of type 0, which Electra's Flax class does not say by itself."""
    name = "token_type_ids"
    has_types = name in inspect.signature(model.__call__).parameters
    return {name: jnp.zeros_like(tokens)[None]} if has_types else {}
