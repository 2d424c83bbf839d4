"""Writes one line of JSON for every finished request to the log."""

import contextlib
import dataclasses
import json
import logging

from jaxserver.ports.telemetry import RequestRecord

LOGGER = logging.getLogger("jaxserver.requests")


class LogTelemetry:
    """Logs at level INFO; a log that fails never fails a request."""

    def request_finished(self, record: RequestRecord) -> None:
        with contextlib.suppress(Exception):
            LOGGER.info("%s", json.dumps(dataclasses.asdict(record)))


class NoTelemetry:
    """Keeps quiet, for `logging = false`."""

    def request_finished(self, record: RequestRecord) -> None:
        return None
