import pytest

from benchmarks.figures import Spread, figures, spread
from benchmarks.load import Answer, Run, Workload

WORKLOAD = Workload(clients=2, requests=3)


def answer(sent: float, *stamps: float, tokens: int) -> Answer:
    return Answer(sent=sent, stamps=stamps, prompt_tokens=10, tokens=tokens)


def test_every_figure_is_what_its_definition_says() -> None:
    run = Run(
        workload=WORKLOAD,
        wall_seconds=8.0,
        answers=(
            answer(0.0, 1.0, 2.0, 3.0, tokens=5),
            answer(0.5, 2.5, 6.5, tokens=9),
        ),
        failures=("a broken one",),
    )

    result = figures(run)

    assert (result.clients, result.completed, result.failed) == (2, 2, 1)
    assert result.prompt_tokens == 10
    assert result.output_tok_s == 14 / 8
    assert result.ttft_ms == spread([1000, 2000])
    assert result.itl_ms == spread([2000 / 4, 4000 / 8])
    assert result.decode_tok_s == spread([4 / 2, 8 / 4])


def test_an_answer_that_came_in_one_piece_has_no_time_between_tokens() -> None:
    run = Run(
        workload=WORKLOAD, wall_seconds=1.0, answers=(answer(0.0, 1.0, tokens=4),)
    )
    result = figures(run)
    assert result.ttft_ms is not None
    assert result.itl_ms is None
    assert result.decode_tok_s is None


def test_a_run_without_answers_has_no_times() -> None:
    result = figures(Run(workload=WORKLOAD, wall_seconds=1.0, answers=()))
    assert result.output_tok_s == 0
    assert result.ttft_ms is None


def test_a_spread_lies_on_straight_lines_between_the_values() -> None:
    assert spread([4.0]) == Spread(p50=4.0, p90=4.0, p99=4.0)
    found = spread([0.0, 10.0])
    assert found is not None
    assert (found.p50, found.p90, found.p99) == pytest.approx((5.0, 9.0, 9.9))
