"""Where finished requests are told of."""

from jaxserver.adapters.telemetry.log import LogTelemetry, NoTelemetry

__all__ = ["LogTelemetry", "NoTelemetry"]
