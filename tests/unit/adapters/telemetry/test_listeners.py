import logging

import pytest

from jaxserver.adapters.telemetry.listeners import Listeners
from jaxserver.ports.telemetry import RequestRecord
from tests.unit.adapters.telemetry.test_log import RECORD


class Heard:
    def __init__(self) -> None:
        self.all: list[RequestRecord | None] = []

    def request_finished(self, record: RequestRecord) -> None:
        self.all.append(record)

    def close(self) -> None:
        self.all.append(None)


class Broken:
    def request_finished(self, record: RequestRecord) -> None:
        raise OSError("broken")

    def close(self) -> None:
        raise OSError("broken")


def test_one_that_fails_keeps_nothing_from_the_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    first, last = Heard(), Heard()
    listeners = Listeners((first, Broken(), last))
    with caplog.at_level(logging.ERROR, logger="jaxserver"):
        listeners.request_finished(RECORD)
        listeners.close()
    assert first.all == last.all == [RECORD, None]
    assert len(caplog.records) == 2
