"""Who hears of finished requests."""

from jaxserver.adapters.telemetry.listeners import Listeners
from jaxserver.adapters.telemetry.log import LogTelemetry
from jaxserver.ports.config import ServerConfig
from jaxserver.ports.errors import InvalidConfig
from jaxserver.ports.telemetry import Telemetry


def hear_requests(config: ServerConfig, metrics: Telemetry) -> Telemetry:
    """All who want to hear of finished requests.

    Raises:
        InvalidConfig: Traces are wanted, but what sends them is not installed.
    """
    each = [metrics]
    if config.logging:
        each.append(LogTelemetry())
    if config.traces:
        each.append(_sent_traces())
    return Listeners(tuple(each))


def _sent_traces() -> Telemetry:
    try:
        from jaxserver.adapters.telemetry.traces import (  # noqa: PLC0415  # an extra
            TraceTelemetry,
        )
    except ImportError as error:
        allowed = "false, or true after pip install 'jaxserver[otel]'"
        raise InvalidConfig("traces", "True", allowed) from error
    return TraceTelemetry.to_collector()
