"""The port of logits processors: steps of choosing a token that users write."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

Scalar: TypeAlias = Any  # A JAX array without dimensions.
Logits: TypeAlias = Any  # A JAX array, float32 [vocab].
ProcessorParams: TypeAlias = Mapping[str, Scalar]
ProcessorState: TypeAlias = Any  # A pytree of arrays whose shapes never change.


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LogitsProcessor:
    """Changes the logits of the requests that name it, by pure functions of one row.

    They are traced once, when the server starts. The state belongs to the answer: it is
    made when the answer begins, hears of each token that is chosen, and depends on
    nothing else, so that it can be made again.

    Attributes:
        init: `(params) -> state`; params are arrays without dimensions.
        update: `(state, token) -> state`, with shapes and types as they were.
        apply: `(state, logits) -> logits`, float32, after bias and penalties and before
            temperature, top-k, top-p and min-p; minus infinity forbids a token.
        params: Names and defaults of what a request may set: numbers, or true or false.
    """

    init: Callable[[ProcessorParams], ProcessorState]
    update: Callable[[ProcessorState, Scalar], ProcessorState]
    apply: Callable[[ProcessorState, Logits], Logits]
    params: Mapping[str, float | int | bool] = dataclasses.field(default_factory=dict)


Processors: TypeAlias = Mapping[str, LogitsProcessor]
"""By the name that requests say."""
