"""Runs logits processors row by row, each for the rows that want it."""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxserver.core.sampling_arrays import History
from jaxserver.ports.errors import InvalidConfig
from jaxserver.ports.processors import LogitsProcessor, Processors, ProcessorState


class Wish(NamedTuple):
    """Whether a row wants a processor, and with which parameters."""

    is_wanted: Bool[Array, "*rows"]
    params: Mapping[str, Array]


Wishes: TypeAlias = Mapping[str, Wish]
States: TypeAlias = Mapping[str, ProcessorState]


class Processing(NamedTuple):
    """What some rows want of the processors there are, and how far each has come."""

    processors: Processors
    wishes: Wishes
    states: States


def wishes_of(processors: Processors, asked: Mapping[str, Mapping[str, Any]]) -> Wishes:
    """One request's, as host arrays without a row axis."""
    wishes = {}
    for name, processor in processors.items():
        given = {**processor.params, **asked.get(name, {})}
        params: dict[str, Any] = {
            key: np.asarray(given[key], _dtype(default))
            for key, default in processor.params.items()
        }
        is_wanted: Any = np.bool_(name in asked)
        wishes[name] = Wish(is_wanted, params)
    return wishes


def _dtype(default: Any) -> Any:
    """Numbers on the device are of 32 bits."""
    if isinstance(default, bool):
        return np.bool_
    return np.int32 if isinstance(default, int) else np.float32


def empty(processors: Processors, rows: int) -> tuple[Wishes, States]:
    """Nobody wants anything, and the states are there for when somebody does."""
    one = wishes_of(processors, {})
    states = {name: p.init(one[name].params) for name, p in processors.items()}

    def repeated(leaf: Any) -> Array:
        return jnp.tile(jnp.asarray(leaf), (rows, *(1,) * jnp.ndim(leaf)))

    return jax.tree.map(repeated, one), jax.tree.map(repeated, states)


def begin(
    processors: Processors, wishes: Wishes, history: History, wanted: Array
) -> States:
    """The states of rows that hold the tokens of an answer already, or none yet."""

    def of_row(
        processor: LogitsProcessor, row: tuple[Wish, History, Array]
    ) -> ProcessorState:
        wish, held, is_wanted = row
        end = jnp.where(wish.is_wanted & is_wanted, held.length, 0)

        def hear(at: Int[Array, ""], state: ProcessorState) -> ProcessorState:
            return processor.update(state, held.tokens[at])

        return jax.lax.fori_loop(
            held.prompt_length, end, hear, processor.init(wish.params)
        )

    return {
        name: jax.lax.map(
            functools.partial(of_row, processor), (wishes[name], history, wanted)
        )
        for name, processor in processors.items()
    }


def apply(row: Processing, logits: Float[Array, " vocab"]) -> Float[Array, " vocab"]:
    """One row's logits after those processors that it wants, in order."""
    for name, processor in row.processors.items():
        change = functools.partial(processor.apply, row.states[name])
        logits = jax.lax.cond(row.wishes[name].is_wanted, change, lambda x: x, logits)
    return logits


def update(
    rows: Processing, tokens: Int[Array, " rows"], chosen: Bool[Array, " rows"]
) -> States:
    """The states after the tokens that were chosen."""

    def of_row(
        processor: LogitsProcessor, row: tuple[Array, ProcessorState, Array]
    ) -> ProcessorState:
        is_heard, state, token = row
        return jax.lax.cond(
            is_heard, lambda: processor.update(state, token), lambda: state
        )

    return {
        name: jax.lax.map(
            functools.partial(of_row, processor),
            (rows.wishes[name].is_wanted & chosen, rows.states[name], tokens),
        )
        for name, processor in rows.processors.items()
    }


def check(processors: Processors, vocab_size: int) -> None:
    """Traces every processor once.

    Raises:
        InvalidConfig: One cannot be traced, or changes a shape or a type.
    """
    for name, processor in processors.items():
        try:
            if not isinstance(processor, LogitsProcessor):
                raise TypeError("it is no LogitsProcessor")
            _trace(processor, vocab_size)
        except Exception as error:
            got = f"{name}, which cannot be traced: {type(error).__name__}: {error}"
            allowed = "processors of pure functions of arrays"
            raise InvalidConfig("logits_processors", got, allowed) from error


def _trace(processor: LogitsProcessor, vocab_size: int) -> None:
    wish = wishes_of({"it": processor}, {})["it"]
    state = jax.eval_shape(processor.init, wish.params)
    token = jax.ShapeDtypeStruct((), jnp.int32)
    logits = jax.ShapeDtypeStruct((vocab_size,), jnp.float32)
    after = jax.eval_shape(processor.update, state, token)
    _same("update", state, after)
    _same("apply", logits, jax.eval_shape(processor.apply, state, logits))


def _same(function: str, expected: Any, found: Any) -> None:
    def plain(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), tree)

    if plain(expected) != plain(found):
        says = f"`{function}` gives {plain(found)}, expected {plain(expected)}"
        raise TypeError(says)
