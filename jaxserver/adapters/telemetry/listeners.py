"""Tells several who want to hear the same."""

import dataclasses
import logging

from jaxserver.ports.telemetry import RequestRecord, Telemetry

LOGGER = logging.getLogger("jaxserver")


@dataclasses.dataclass(frozen=True, slots=True)
class Listeners:
    """Implements the `Telemetry` port; one that fails keeps nothing from the others."""

    each: tuple[Telemetry, ...]

    def request_finished(self, record: RequestRecord) -> None:
        for telemetry in self.each:
            try:
                telemetry.request_finished(record)
            except Exception:
                LOGGER.exception("the telemetry has failed")

    def close(self) -> None:
        for telemetry in self.each:
            try:
                telemetry.close()
            except Exception:
                LOGGER.exception("the telemetry has failed")
