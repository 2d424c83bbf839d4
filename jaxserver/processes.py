"""Several processes that serve one model together, over JAX's own collectives."""

import os

import jax

from jaxserver.ports.config import ServerConfig
from jaxserver.ports.errors import InvalidConfig

LOST_SECONDS = 3
"""How long a device waits for the others in one collective before they are lost."""


def join(config: ServerConfig) -> None:
    """Waits for the others, where there are any; nothing may have used JAX before.

    Raises:
        InvalidConfig: The keys of the processes do not fit each other.
    """
    if config.process_id >= config.num_processes:
        allowed = f"less than num_processes, {config.num_processes}"
        raise InvalidConfig("process_id", str(config.process_id), allowed)
    if config.num_processes == 1:
        return
    if config.coordinator is None:
        allowed = f"HOST:PORT of process 0, for {config.num_processes} processes"
        raise InvalidConfig("coordinator", "none", allowed)
    if not config.pre_compile:
        allowed = "true for several processes, which would wait for each other's"
        raise InvalidConfig("pre_compile", "false", allowed)
    # Some devices of this process may wait for others of it that have heard of a loss.
    flags = f"--xla_cpu_collective_timeout_seconds={LOST_SECONDS}"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}"
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # Collectives of two executables that run side by side would meet in any order.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    jax.distributed.initialize(
        config.coordinator, config.num_processes, config.process_id
    )
