"""Runs a row of an encoder-decoder `FlaxPreTrainedModel`.

A row keeps what its encoder made, besides the decoder's keys and values. The classes
work out cross-attention from it on every call.
"""

import inspect
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from jaxserver.adapters.flax_models.row_fns import Extended, Piece, RowFns
from jaxserver.adapters.flax_models.rows import Row, with_cursor
from jaxserver.adapters.flax_models.sizes import Sizes, first_position
from jaxserver.ports.model import Cache, Encode, Params

_LENGTHS = (32, 128, 512)


class _Row(NamedTuple):
    """One request's encoded input, with which of it counts, and its decoder's cache."""

    hidden: Any
    is_token: Any
    decoder: Any


class EncoderDecoder(NamedTuple):
    """One row of a decoder, and what writes its encoder's part of the rows."""

    row_fns: RowFns
    encode: Encode
    encoder_lengths: tuple[int, ...]


def encoder_decoder(model: Any, sizes: Sizes, max_input: int) -> EncoderDecoder:
    """The parts of a model with an encoder.

    Args:
        model: Its parameters are not used, but given with every call.
        sizes: How long its decoder's rows are.
        max_input: Longest input of the encoder.
    """
    encode_row = _encoder(model)
    shapes = _row_shapes(model, encode_row, sizes, max_input)
    shorter = {length for length in _LENGTHS if length < max_input}
    return EncoderDecoder(
        row_fns=RowFns(shapes, _decoder(model, sizes)),
        encode=_by_rows(encode_row, max_input),
        encoder_lengths=tuple(sorted({*shorter, max_input})),
    )


def _decoder(model: Any, sizes: Sizes) -> Any:
    parameters = inspect.signature(model.decode).parameters
    takes_positions = "decoder_position_ids" in parameters
    first = first_position(getattr(model.config, "decoder", model.config))

    def extend(params: Params, row: Row, piece: Piece) -> Extended:
        positions = {"decoder_position_ids": first + piece.positions[None]}
        output = model.decode(
            piece.tokens[None],
            (row.hidden,),
            encoder_attention_mask=row.is_token.astype(jnp.int32),
            decoder_attention_mask=jnp.ones((1, sizes.capacity), jnp.int32),
            params=params,
            past_key_values=with_cursor(row.decoder, piece.start),
            return_dict=True,
            **(positions if takes_positions else {}),
        )
        row = row._replace(decoder=dict(output["past_key_values"]))
        return output.logits[0], row

    return extend


def _by_rows(encode_row: Any, max_input: int) -> Encode:
    def encode(
        params: Params,
        cache: Cache,
        rows: Int[Array, " rows"],
        tokens: Int[Array, "rows time"],
        length: Int[Array, " rows"],
    ) -> Cache:
        steps = jnp.arange(max_input, dtype=jnp.int32)[None, :]
        is_token = steps < length[:, None]
        seen = is_token[:, : tokens.shape[1]]
        hidden = jax.vmap(encode_row, in_axes=(None, 0, 0))(params, tokens, seen)
        spare = max_input - tokens.shape[1]
        hidden = jnp.pad(hidden, ((0, 0), (0, spare), (0, 0)))[:, None]
        empty = jax.tree.map(
            lambda leaf: leaf.at[rows].set(0, mode="drop"), cache.decoder
        )
        return cache._replace(
            decoder=empty,
            hidden=cache.hidden.at[rows].set(hidden, mode="drop"),
            is_token=cache.is_token.at[rows].set(is_token[:, None], mode="drop"),
        )

    return encode


def _encoder(model: Any) -> Any:
    """One row's hidden states: `(params, tokens, is_token) -> [time, embed]`."""

    def by_method(params: Params, tokens: Array, is_token: Array) -> Array:
        mask = is_token[None].astype(jnp.int32)
        output = model.encode(tokens[None], mask, params=params, return_dict=True)
        hidden: Array = output.last_hidden_state[0]
        return hidden

    def by_module(params: Params, tokens: Array, is_token: Array) -> Array:
        """The composed class hands its encoder positions where it expects types."""

        def forward(module: Any, **inputs: Any) -> Any:
            return module.encoder(**inputs, return_dict=True)

        first = first_position(model.config.encoder)
        positions = first + jnp.arange(tokens.shape[0], dtype=jnp.int32)
        output = model.module.apply(
            {"params": params},
            input_ids=tokens[None],
            attention_mask=is_token[None].astype(jnp.int32),
            position_ids=positions[None],
            method=forward,
        )
        hidden: Array = output.last_hidden_state[0]
        return hidden

    return by_module if model.config.model_type == "encoder-decoder" else by_method


def _row_shapes(model: Any, encode_row: Any, sizes: Sizes, max_input: int) -> _Row:
    tokens = jax.ShapeDtypeStruct((max_input,), jnp.int32)
    is_token = jax.ShapeDtypeStruct((max_input,), jnp.bool_)
    hidden = jax.eval_shape(encode_row, model.params_shape_tree, tokens, is_token)
    one = jax.ShapeDtypeStruct((1, *hidden.shape), hidden.dtype)

    def init(states: Array) -> Any:
        return model.init_cache(1, sizes.capacity, (states,))

    return _Row(
        hidden=one,
        is_token=jax.ShapeDtypeStruct((1, max_input), jnp.bool_),
        decoder=jax.eval_shape(init, one),
    )
