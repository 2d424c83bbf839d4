import argparse

import numpy as np
import pytest

from benchmarks import step
from jaxserver.core.kv_cache import cache_dtype
from tests.tiny import tiny_model


def test_a_part_is_told_with_its_share_of_the_step_and_of_the_limits() -> None:
    parts = [
        step.Part(name="first", times=2, seconds=0.003, bytes=6_000_000, operations=0),
        step.Part(name="second", times=1, seconds=0.001, bytes=0, operations=5_000_000),
    ]
    *_, first, second = step.table(parts, (4e9, 10e9)).splitlines()
    assert first == "| first | 2 | 3.00 | 75% | 2.0 | 50% | 0.0 | 0% |"
    assert second == "| second | 1 | 1.00 | 25% | 0.0 | 0% | 5.0 | 50% |"


@pytest.mark.parametrize("kept", ["float32", "int8"])
def test_every_part_of_a_model_is_run_and_counted(kept: str) -> None:
    tiny = tiny_model(kept=kept)
    model = argparse.Namespace(params=tiny.params, fns=tiny.fns)
    measured = step.Measured(model, rows=4, time=1, times=1)  # type: ignore[arg-type]
    parts = {part.name: part for part in measured.parts(context=128)}
    assert all(part.seconds > 0 for part in parts.values())
    down = parts["down"]
    halves = 2 if kept == "int8" else 1
    assert down.times == 2
    assert down.operations == 2 * halves * 2 * 4 * 48 * 32
    attended = 2 * 2 * 4 * 2 * 8 * 128 * np.dtype(cache_dtype(kept)).itemsize
    assert parts["attention"].bytes == attended
    assert measured.whole(context=128) > 0
