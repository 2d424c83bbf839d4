"""Several processes that serve one model together, over JAX's own collectives."""

import jax

from jaxserver.ports.config import ServerConfig
from jaxserver.ports.errors import InvalidConfig


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
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # Collectives of two executables that run side by side would meet in any order.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    jax.distributed.initialize(
        config.coordinator, config.num_processes, config.process_id
    )
