"""Writes one line of JSON for every finished request to the log."""

import contextlib
import dataclasses
import json
import logging

from jaxserver.ports.telemetry import RequestRecord

LOGGER = logging.getLogger("jaxserver.requests")


class LogTelemetry:
    """Logs at level INFO; a log that fails never fails a request.

    One that the engine did not take is counted elsewhere: those who are refused come
    again at once, and a log that nobody reads would soon hold up everything.
    """

    def request_finished(self, record: RequestRecord) -> None:
        if record.request_id is None:
            return
        with contextlib.suppress(Exception):
            LOGGER.info("%s", json.dumps(_fields(record)))

    def close(self) -> None:
        return None


def _fields(record: RequestRecord) -> dict[str, object]:
    return {
        "request_id": record.request_id,
        "x_request_id": record.origin.request_id,
        "outcome": record.outcome,
        "usage": dataclasses.asdict(record.usage),
        "queue_seconds": record.queue_seconds,
        "first_token_seconds": record.first_token_seconds,
        "total_seconds": record.total_seconds,
    }
