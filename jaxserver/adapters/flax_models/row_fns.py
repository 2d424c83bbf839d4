"""`ModelFns` out of a function of one row.

The classes' cache has one cursor for a whole batch, so every row is a batch of one,
`vmap` makes the batch, and `start` replaces the cursor on every call.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

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
    write_start,
)
from jaxserver.adapters.flax_models.sizes import Sizes
from jaxserver.ports.model import (
    AnswerRules,
    Cache,
    Hidden,
    ModelFns,
    Params,
    TokenBatch,
)


class Piece(NamedTuple):
    """Some tokens of one row.

    Attributes:
        tokens: Token ids, right-padded with anything.
        start: Position of the first.
    """

    tokens: Int[Array, " time"]
    start: Int[Array, ""]

    @property
    def positions(self) -> Int[Array, " time"]:
        return self.start + jnp.arange(self.tokens.shape[0], dtype=jnp.int32)


Extended: TypeAlias = tuple[Float[Array, "time vocab"], Row]


class RowFns(NamedTuple):
    """A model of one row.

    Attributes:
        shapes: Of what it keeps of a row.
        extend: Runs a piece of it; the classes have logits after each token.
    """

    shapes: Row
    extend: Callable[[Params, Row, Piece], Extended]


def fns_of(row_fns: RowFns, sizes: Sizes, rules: AnswerRules) -> ModelFns:
    """The functions of many rows.

    Args:
        row_fns: Those of one.
        sizes: How long a row is.
        rules: What the model's settings demand of answers.
    """

    def run(params: Params, cache: Cache, batch: TokenBatch) -> tuple[Hidden, Cache]:
        rows, pages = take_rows(cache, batch)
        pieces = Piece(batch.tokens, write_start(batch))
        over_rows = jax.vmap(row_fns.extend, in_axes=(None, 0, 0))
        logits, rows = over_rows(params, rows, pieces)
        return logits, put_rows(cache, rows, batch, pages)

    def read(
        params: Params, hidden: Hidden, at: Int[Array, "rows reads"]
    ) -> Float[Array, "rows reads vocab"]:
        logits = jnp.take_along_axis(hidden, at[:, :, None], 1, mode="clip")
        return logits.astype(jnp.float32)

    return ModelFns(
        init_cache=lambda num_pages: empty_rows(row_fns.shapes, num_pages),
        run=run,
        read=read,
        copy_pages=copy_rows,
        cache_axes=row_axes,
        page_size=sizes.capacity,
        max_len=sizes.max_len,
        vocab_size=sizes.vocab_size,
        chunk=sizes.chunk,
        rules=rules,
    )
