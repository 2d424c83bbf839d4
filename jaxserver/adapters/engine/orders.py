"""What the first of several processes tells the others to run, before it runs it too.

Only the first one plans. An order is an array of one size, which every process takes
part in sending, so that one that is lost is an error for all the others.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from jax._src.distributed import global_state  # the barrier has no public name

from jaxserver.core.config import EngineConfig
from jaxserver.core.executables import Kind, Steps

KINDS: tuple[Kind, ...] = ("init", "adopt", "prefill", "decode")
IDLE_SECONDS = 1.0
"""How often something is said where there is nothing to do."""
NOTHING, STOP = len(KINDS), len(KINDS) + 1
_MEETING_SECONDS = 1800
_HEAD = np.dtype(np.int32).itemsize * 2


class Order(NamedTuple):
    """One call of an executable.

    Attributes:
        inputs: What it takes besides weights and state, as host arrays.
    """

    kind: Kind
    size: int
    inputs: tuple[Any, ...] = ()


class Orders(Protocol):
    """Where a device says what it is about to run."""

    @property
    def idle_seconds(self) -> float | None:
        """How long it may stay silent; None is for ever."""
        ...

    def give(self, order: Order) -> None:
        """Tells it to the others, if there are any, and returns when they know."""
        ...

    def say_nothing(self) -> None:
        """Finds out whether the others are there."""
        ...

    def dismiss(self) -> None:
        """Lets the others end."""
        ...


class NoOrders:
    """One process serves alone."""

    idle_seconds = None

    def give(self, order: Order) -> None:
        pass

    def say_nothing(self) -> None:
        pass

    def dismiss(self) -> None:
        pass


class Broadcast:
    """Orders that go from the first process to all others by JAX's own collectives."""

    idle_seconds = IDLE_SECONDS

    def __init__(self, steps: Steps, engine: EngineConfig) -> None:
        """Compiles the one executable it needs, and meets the other processes.

        The first collective would give up on one that is still compiling.
        """
        self._steps = steps
        self._num_bytes = most_bytes(steps, engine)
        self._share = steps.share(self._num_bytes)
        ((self._sharding,), _) = self._share.input_shardings
        client: Any = global_state.client
        client.wait_at_barrier("jaxserver", _MEETING_SECONDS * 1000)
        self.say_nothing()

    def give(self, order: Order) -> None:
        leaves = jax.tree.leaves(order.inputs)
        self._exchange(KINDS.index(order.kind), order.size, leaves)

    def say_nothing(self) -> None:
        self._exchange(NOTHING)

    def dismiss(self) -> None:
        self._exchange(STOP)

    def follow(self, run: Callable[[Order], object]) -> None:
        """Runs what the first process orders until it lets this one go."""
        while (order := self._take()) is not None:
            run(order)

    def _take(self) -> Order | None:
        while True:
            content = self._exchange(NOTHING)
            kind, size = np.frombuffer(content[:_HEAD], np.int32).tolist()
            if kind == STOP:
                return None
            if kind != NOTHING:
                return self._read(KINDS[kind], size, content[_HEAD:])

    def _read(self, kind: Kind, size: int, content: bytes) -> Order:
        leaves, tree = jax.tree.flatten(self._steps.inputs(kind, size))
        arrays, at = [], 0
        for leaf in leaves:
            end = at + leaf.size * leaf.dtype.itemsize
            flat = np.frombuffer(content[at:end], leaf.dtype)
            arrays.append(flat.reshape(leaf.shape))
            at = end
        return Order(kind, size, jax.tree.unflatten(tree, arrays))

    def _exchange(self, kind: int, size: int = 0, leaves: Any = ()) -> bytes:
        """Sends what this process has to say and hears what the first one has."""
        head = np.array([kind, size], np.int32)
        content = b"".join(np.asarray(part).tobytes() for part in (head, *leaves))
        row = np.zeros((1, self._num_bytes), np.uint8)
        row[0, : len(content)] = np.frombuffer(content, np.uint8)
        shape = (self._sharding.num_devices, self._num_bytes)
        rows = jax.make_array_from_callback(shape, self._sharding, lambda _: row)
        return np.asarray(self._share(rows)).tobytes()


def most_bytes(steps: Steps, engine: EngineConfig) -> int:
    """Of the longest order there is."""
    chunks = [steps.inputs("prefill", time) for time in engine.prefill_lengths]
    blocks = [steps.inputs("decode", rows) for rows in engine.decode_ladder]
    longest: int = max(
        sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
        for tree in (steps.inputs("adopt", 0), *chunks, *blocks)
    )
    return _HEAD + longest
