"""Logits processors that requests name, in the engine."""

import functools
from collections.abc import Iterator

import pytest

from jaxserver.adapters.engine.compiling import CompiledSteps
from jaxserver.adapters.engine.text import TextEngine
from jaxserver.core.executables import build_steps
from jaxserver.ports.errors import InvalidRequest
from tests import engines
from tests.processors import PROCESSORS
from tests.unit.adapters.engine.answers import ids_of, request

ALWAYS_65 = {65: 100.0}


@functools.cache
def executables() -> CompiledSteps:
    tiny = engines.model()
    fns = tiny.fns._replace(processors=tuple(PROCESSORS.items()))
    return CompiledSteps(build_steps(fns, tiny.params, engines.NARROW, tiny.mesh))


@pytest.fixture(scope="module")
def engine() -> Iterator[TextEngine]:
    with engines.running(engines.Parts(executables=executables())) as running:
        yield running


def test_an_answer_is_changed_as_its_request_asks(engine: TextEngine) -> None:
    plain = request(logit_bias=ALWAYS_65, max_new_tokens=12)
    changed = request(
        logit_bias=ALWAYS_65,
        max_new_tokens=12,
        logits_processors={"no_token_twice": {}},
    )
    assert ids_of(engine.generate(plain)) == (65,) * 12
    once = ids_of(engine.generate(changed))
    assert once[0] == 65
    assert len(set(once)) == 12


def test_neighbours_change_nothing_and_are_not_changed(engine: TextEngine) -> None:
    each: dict[str, dict[str, float]] = {name: {} for name in PROCESSORS}
    wishes = [{}, {"no_token_twice": {}}, {"drift": {"step": 9.0}}, {}, each]
    asked = [
        request(f"prompt {i}", logits_processors=wish, seed=i, max_new_tokens=25)
        for i, wish in enumerate(wishes)
    ]
    alone = [ids_of(engine.generate(one)) for one in asked]
    streams = [engine.generate(one) for one in asked]
    assert [ids_of(stream) for stream in streams] == alone


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"unknown": {}}, "unknown, allowed is drift, no_token_twice"),
        ({"drift": {"size": 1}}, "drift: size, allowed is step, token"),
        ({"drift": {"token": 1.5}}, "drift: token: 1.5, allowed is a int"),
        ({"no_token_twice": {"a": 1}}, "no_token_twice: a, allowed is no parameter"),
    ],
)
def test_what_no_processor_has_is_refused_by_name(
    engine: TextEngine, asked: dict[str, dict[str, float]], says: str
) -> None:
    with pytest.raises(InvalidRequest, match=says):
        list(engine.generate(request(logits_processors=asked)))


def test_where_there_are_none_the_error_says_so() -> None:
    with (
        engines.running() as engine,
        pytest.raises(InvalidRequest, match="there are none"),
    ):
        list(engine.generate(request(logits_processors={"drift": {}})))
