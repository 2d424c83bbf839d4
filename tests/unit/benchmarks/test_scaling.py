import pytest

from benchmarks import scaling


@pytest.mark.parametrize(
    ("name", "curve", "told"),
    [
        ("slots", {1: 0.010, 4: 0.013, 64: 0.1}, None),
        ("slots", {1: 0.010, 4: 0.039, 64: 0.64}, None),
        ("context", {128: 0.010, 256: 0.024}, "context: 2.4 times from 128 to 256"),
        ("slots", {1: 0.01, 8: 0.01, 64: 0.7}, "slots: 70.0 times from 8 to 64"),
        ("queue", {1: 0.0001, 256: 0.0019}, None),
        ("queue", {1: 0.0001, 256: 0.0031}, "queue: 3.1 ms"),
    ],
)
def test_a_cost_that_grows_too_fast_is_told(
    name: str, curve: scaling.Curve, told: str | None
) -> None:
    assert scaling.too_much(name, curve) == told


def test_costs_are_predicted_in_proportion_and_the_queue_to_cost_the_same() -> None:
    curve = {2: 0.5, 4: 0.75, 8: 1.0}
    assert scaling.predicted("slots", curve) == {2: 0.5, 4: 1.0, 8: 2.0}
    most = scaling.MOST_PLAN_SECONDS
    assert scaling.predicted("queue", curve) == {2: most, 4: most, 8: most}


def test_planning_costs_little_however_many_wait() -> None:
    for running in (0, 8):
        assert 0 < scaling.plan_seconds(256, running, times=5) < 0.05
