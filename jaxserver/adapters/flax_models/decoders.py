"""Runs a causal `FlaxPreTrainedModel` through the `ModelFns` port.

Its cache has one cursor for a whole batch, so every row is a batch of one, `vmap` makes
the batch, and `start` replaces the cursor on every call.
"""

import inspect
import logging
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxserver.adapters.flax_models.rows import (
    Row,
    copy_rows,
    empty_rows,
    put_rows,
    row_axes,
    take_rows,
    with_cursor,
    write_start,
)
from jaxserver.adapters.flax_models.sizes import Sizes
from jaxserver.ports.model import AnswerRules, Cache, ModelFns, Params, TokenBatch

LOGGER = logging.getLogger("jaxserver")


def decoder_fns(model: Any, sizes: Sizes, rules: AnswerRules) -> ModelFns:
    """The functions of a model with a language-model head.

    Args:
        model: Its parameters are not used, but given with every call.
        sizes: How long its rows are.
        rules: What its settings demand of answers.
    """
    if keeps_its_cache(model, sizes):
        init_row, extend_row = _cached(model, sizes)
    else:
        LOGGER.warning(
            "%s has no cache of its own: each token runs its whole row again",
            type(model).__name__,
        )
        init_row, extend_row = _rerun(model, sizes)
    return ModelFns(
        init_cache=lambda num_pages: empty_rows(init_row, num_pages),
        extend=by_rows(extend_row),
        copy_pages=copy_rows,
        cache_axes=row_axes,
        page_size=sizes.capacity,
        max_len=sizes.max_len,
        vocab_size=sizes.vocab_size,
        chunk=sizes.chunk,
        rules=rules,
    )


def keeps_its_cache(model: Any, sizes: Sizes) -> bool:
    """Whether the class takes a cache and gives it back; some drop it in silence."""
    try:
        row, extend_row = _cached(model, sizes)
        token, start = jnp.zeros(1, jnp.int32), jnp.int32(0)
        jax.eval_shape(extend_row, model.params_shape_tree, row, token, start, token)
    except (TypeError, AttributeError, KeyError, ValueError):
        return False
    return True


def by_rows(extend_row: Any) -> Any:
    """`Extend` out of a function of one row."""

    def extend(
        params: Params, cache: Cache, batch: TokenBatch
    ) -> tuple[Float[Array, "rows reads vocab"], Cache]:
        rows, pages = take_rows(cache, batch)
        logits, rows = jax.vmap(extend_row, in_axes=(None, 0, 0, 0, 0))(
            params, rows, batch.tokens, write_start(batch), batch.logits_at
        )
        return logits.astype(jnp.float32), put_rows(cache, rows, batch, pages)

    return extend


def _cached(model: Any, sizes: Sizes) -> tuple[Row, Any]:
    takes_positions = "position_ids" in inspect.signature(model.__call__).parameters
    row = jax.eval_shape(lambda: model.init_cache(1, sizes.capacity))

    def extend_row(
        params: Params,
        row: Row,
        tokens: Int[Array, " time"],
        start: Int[Array, ""],
        logits_at: Int[Array, " reads"],
    ) -> tuple[Float[Array, "reads vocab"], Row]:
        positions = start + jnp.arange(tokens.shape[0], dtype=jnp.int32)
        output = model(
            tokens[None],
            attention_mask=jnp.ones((1, sizes.capacity), jnp.int32),
            params=params,
            past_key_values=with_cursor(row, start),
            return_dict=True,
            **({"position_ids": positions[None]} if takes_positions else {}),
        )
        return output.logits[0, logits_at], dict(output["past_key_values"])

    return row, extend_row


def _rerun(model: Any, sizes: Sizes) -> tuple[Row, Any]:
    """The row is its tokens; what follows the last one is there but not seen."""
    row = jax.ShapeDtypeStruct((sizes.capacity,), jnp.int32)

    def extend_row(
        params: Params,
        row: Row,
        tokens: Int[Array, " time"],
        start: Int[Array, ""],
        logits_at: Int[Array, " reads"],
    ) -> tuple[Float[Array, "reads vocab"], Row]:
        at = start + jnp.arange(tokens.shape[0], dtype=jnp.int32)
        row = row.at[at].set(tokens, mode="drop")
        output = model(row[None], params=params, return_dict=True)
        return output.logits[0, start + logits_at], row

    return row, extend_row
