import argparse
import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import versus
from benchmarks.contestants import (
    CONTESTANTS,
    Measure,
    Missing,
    Sample,
    Setting,
    flax,
    over_http,
    torch,
)
from benchmarks.load import Workload
from tests.fakes import ScriptedGenerator
from tests.unit.benchmarks.serving import serving

TINY = {
    "vocab_size": 32,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
SETTING = Setting(
    file=Path("none.gguf"), config=TINY, slots=1, threads=1, serve=(), pythons={}
)


def args(*arguments: str) -> argparse.Namespace:
    return versus.parse(arguments)


def test_a_row_has_medians_and_the_medians_of_the_rounds_own_ratios() -> None:
    ours, its = [30.0, 40.0, 20.0], [10.0, 20.0, 20.0]
    rounds = [
        {"jaxserver": {4: Sample(a, 0.1)}, "other": {4: Sample(b, 0.4)}}
        for a, b in zip(ours, its, strict=True)
    ]
    *_, first, second = versus.table(rounds).splitlines()
    assert first == "| jaxserver | 4 | 30.0 | 100 | 1.00 | 1.00 |"
    assert second == "| other | 4 | 20.0 | 400 | 2.00 | 0.25 |"


def test_each_is_the_first_in_its_turn_and_none_is_asked_a_text_twice() -> None:
    heard: list[tuple[str, Workload]] = []

    def contestant(name: str) -> Measure:
        def measure(workload: Workload) -> Sample:
            heard.append((name, workload))
            return Sample(1.0, 1.0)

        return measure

    field = {name: contestant(name) for name in ("a", "b")}
    asked = args("--clients", "1,3", "--turns", "2")
    for nth in range(2):
        versus.one_round(field, asked, nth)
    counted = [name for name, workload in heard if workload.clients == 3]
    assert counted == ["a", "a", "b", "b", "b", "a"]  # each warms up in the first round
    texts = [
        number
        for name, workload in heard
        if name == "a"
        for number in range(
            workload.asked_before, workload.asked_before + workload.requests
        )
    ]
    assert len(texts) == len(set(texts)) == 3 * (2 + 6)


def test_what_is_not_there_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @contextlib.contextmanager
    def here(setting: Setting) -> Iterator[Measure]:
        yield lambda workload: Sample(1.0, 1.0)

    monkeypatch.setitem(CONTESTANTS, "jaxserver", here)
    monkeypatch.setenv("PATH", "")
    chosen = versus.names("llama-server; PyTorch generate, float32")
    with contextlib.ExitStack() as stack:
        field = dict(versus.entered(stack, SETTING, chosen))
    assert list(field) == ["jaxserver"]
    said = capsys.readouterr().out
    assert "llama-server is missing: no llama-server on the path" in said
    assert "float32 is missing: no --peer-python torch=PATH" in said


def test_a_contestant_that_nobody_knows_is_refused_with_those_there_are() -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="no 'vllm' among jaxserver;"):
        versus.names("vllm")


@pytest.mark.parametrize("form", ["shipped", "jitted"])
def test_a_library_answers_in_a_process_of_its_own(form: str) -> None:
    workload = Workload(clients=2, requests=2, prompt_tokens=4, new_tokens=3)
    with flax(SETTING, form) as measure:
        measure(workload)
        sample = measure(workload)
    assert sample.tokens_per_second > 0
    assert sample.first_seconds > 0


def test_a_library_without_an_interpreter_is_missing() -> None:
    with pytest.raises(Missing, match="torch"), torch(SETTING, "float32"):
        pass


def test_a_server_is_asked_for_whole_answers() -> None:
    workload = Workload(clients=1, requests=2, new_tokens=3)
    with serving(ScriptedGenerator("a", "b", "c")) as url:
        assert over_http(url)(workload).tokens_per_second > 0
    with serving(ScriptedGenerator("a")) as url, pytest.raises(SystemExit):
        over_http(url)(workload)
