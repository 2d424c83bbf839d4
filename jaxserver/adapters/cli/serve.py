"""`jaxserver serve`: the server, its ready line and its warning."""

import dataclasses
import ipaddress

import typer

from jaxserver.adapters.cli.options import Quiet
from jaxserver.adapters.cli.program import Program
from jaxserver.adapters.cli.progress import bars
from jaxserver.adapters.cli.setting_options import warn
from jaxserver.ports.config import ServerConfig


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ServeFlags:
    quiet: Quiet = False


def serve(program: Program, config: ServerConfig, flags: ServeFlags) -> None:
    """Serve a model over HTTP and in the browser."""
    if config.api_key is None and not is_loopback(config.host):
        warn(
            f"whoever reaches {config.host} port {config.port} can use the server; "
            "set --api-key, or --host 127.0.0.1"
        )
    with bars(quiet=flags.quiet) as progress:

        def on_ready(url: str) -> None:
            progress.stop()
            typer.echo(f"jaxserver ready on {url}")

        program.serve(config, progress, on_ready)


def is_loopback(host: str) -> bool:
    address = _address(host)
    return host == "localhost" if address is None else address.is_loopback


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
