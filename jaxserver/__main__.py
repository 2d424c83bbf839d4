"""The `jaxserver` command: the command line, with the functions of the server in it."""

import contextlib
import dataclasses
import gc
from collections.abc import Iterator

from jaxserver.adapters.cli.app import build
from jaxserver.adapters.cli.program import OnReady, OpenModel, Program
from jaxserver.ports.config import ServerConfig
from jaxserver.ports.memory import MemoryPlan
from jaxserver.ports.progress import Progress


def main() -> None:
    """Runs one command; what it needs of the server is imported when it runs."""
    program = Program(open=_open, serve=_serve, pull=_pull, plan=_plan)
    build(program)(prog_name="jaxserver")


@contextlib.contextmanager
def _open(config: ServerConfig, progress: Progress) -> Iterator[OpenModel]:
    from jaxserver.server import JAXServer  # noqa: PLC0415  # imports JAX

    # One terminal asks one thing at a time.
    server = JAXServer(dataclasses.replace(config, slots=config.slots or 1))
    server.open(progress)
    try:
        yield OpenModel(generator=server, formatter=server.formatter)
    finally:
        server.end()


def _serve(config: ServerConfig, progress: Progress, on_ready: OnReady) -> None:
    # What a start makes is there to stay: to look through it again and again for what
    # may go takes a fifth of the imports' time.
    gc.disable()
    from jaxserver.serving import serve  # noqa: PLC0415  # imports JAX

    serve(config, progress, on_ready)


def _pull(model: str, progress: Progress) -> str:
    from jaxserver.adapters.checkpoints.locate import locate  # noqa: PLC0415

    return str(locate(model, progress))


def _plan(config: ServerConfig) -> MemoryPlan:
    from jaxserver.wiring import plan  # noqa: PLC0415  # imports JAX

    return plan(config)


if __name__ == "__main__":
    main()
