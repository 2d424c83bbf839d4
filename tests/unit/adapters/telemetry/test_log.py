import json
import logging

import pytest

from jaxserver.adapters.telemetry.log import LogTelemetry
from jaxserver.ports.origin import Origin
from jaxserver.ports.telemetry import Arrival, RequestRecord
from jaxserver.ports.types import Usage

RECORD = RequestRecord(
    request_id=3,
    outcome="stop",
    usage=Usage(
        prompt_tokens=5,
        completion_tokens=7,
        prompt_tokens_dropped=1,
        cached_tokens=2,
    ),
    queue_seconds=0.25,
    first_token_seconds=None,
    total_seconds=1.5,
    arrivals=(Arrival(0.5, 7),),
    origin=Origin(request_id='the "client\'s"'),
)


def test_a_finished_request_is_one_line_of_json(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO, logger="jaxserver.requests"):
        LogTelemetry().request_finished(RECORD)
    (line,) = caplog.messages
    assert "\n" not in line
    assert json.loads(line) == {
        "request_id": 3,
        "x_request_id": 'the "client\'s"',
        "outcome": "stop",
        "usage": {
            "prompt_tokens": 5,
            "completion_tokens": 7,
            "prompt_tokens_dropped": 1,
            "cached_tokens": 2,
        },
        "queue_seconds": 0.25,
        "first_token_seconds": None,
        "total_seconds": 1.5,
    }


def test_a_log_that_fails_fails_no_request() -> None:
    asked = []

    def fail(record: logging.LogRecord) -> bool:
        asked.append(record)
        raise OSError("disk full")

    logger = logging.getLogger("jaxserver.requests")
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addFilter(fail)
    try:
        LogTelemetry().request_finished(RECORD)
    finally:
        logger.removeFilter(fail)
        logger.setLevel(level)
    assert len(asked) == 1
