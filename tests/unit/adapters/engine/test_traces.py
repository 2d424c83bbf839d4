"""What was traced once is read, and only where nothing has changed."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src import compilation_cache
from jax.stages import Compiled

from jaxserver.adapters.engine import traces
from jaxserver.adapters.engine.compile_cache import keep_compiled_code, opened_cache
from jaxserver.adapters.engine.compiling import CompiledSteps
from jaxserver.adapters.engine.traces import Traces
from jaxserver.core.decode_state import DecodeState
from jaxserver.ports.types import GenerationRequest, SamplingParams
from tests import engines

SETTINGS = (
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
)
GIVEN = {"x": np.arange(4, dtype=np.float32), "y": np.float32(2)}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where JAX keeps compiled code while the test lasts."""
    before = {name: getattr(jax.config, name) for name in SETTINGS}
    opener = compilation_cache.get_file_cache
    monkeypatch.setattr(compilation_cache, "get_file_cache", opener)
    compilation_cache.reset_cache()
    keep_compiled_code(tmp_path)
    yield tmp_path
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


class Builder:
    """Compiles a small step, and counts how often."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> Compiled:
        def step(given: dict[str, Any]) -> dict[str, Any]:
            return {"z": given["x"] * given["y"] + jnp.sin(given["x"])}

        self.count += 1
        return jax.jit(step).lower(GIVEN).compile()


def known(made_of: str = "a model") -> Traces:
    return Traces(made_of, jax.devices()[:1])


@pytest.mark.usefixtures("cache")
def test_what_was_traced_is_not_traced_again() -> None:
    build = Builder()
    first = known().get("decode", 4, build)
    again = known().get("decode", 4, build)

    assert build.count == 1
    np.testing.assert_array_equal(again(GIVEN)["z"], first(GIVEN)["z"])
    assert str(again.in_tree) == str(first.in_tree)


CHANGES: dict[str, Callable[[pytest.MonkeyPatch], Traces]] = {
    "the model": lambda patch: known("another model"),
    "our code": lambda patch: changed(patch, _PACKAGE=Path(__file__).parent),
    "JAX": lambda patch: changed(patch, version_str="0.0.1"),
    "the processor": lambda patch: changed(patch, multiplies_bytes=lambda: None),
    "the devices": lambda patch: Traces("a model", jax.devices()[:2]),
    "a setting": lambda patch: flagged(patch, "--xla_cpu_enable_fast_math=false"),
}


def changed(patch: pytest.MonkeyPatch, **values: Any) -> Traces:
    for name, value in values.items():
        patch.setattr(traces, name, value)
    return known()


def flagged(patch: pytest.MonkeyPatch, flags: str) -> Traces:
    patch.setenv("XLA_FLAGS", flags)
    return known()


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("what", CHANGES)
def test_a_change_of_what_it_is_made_of_has_it_traced(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = Builder()
    known().get("decode", 4, build)
    CHANGES[what](monkeypatch).get("decode", 4, build)

    assert build.count == 2


@pytest.mark.usefixtures("cache")
def test_each_step_has_its_own() -> None:
    build = Builder()
    for kind, size in (("decode", 4), ("decode", 8), ("prefill", 4)):
        known().get(kind, size, build)

    assert build.count == 3


def test_without_its_code_a_step_is_traced_and_remembered_again(cache: Path) -> None:
    build = Builder()
    known().get("decode", 4, build)
    for code in cache.glob("jit_*"):
        code.unlink()
    for _ in range(2):
        known().get("decode", 4, build)

    assert build.count == 2


def test_one_that_cannot_be_read_is_traced_and_remembered_again(cache: Path) -> None:
    build = Builder()
    known().get("decode", 4, build)
    (file,) = cache.glob("trace_*")
    file.unlink()
    opened = opened_cache()
    assert opened is not None
    opened.put(file.name.removesuffix("-cache"), b"of another time")
    for _ in range(2):
        known().get("decode", 4, build)

    assert build.count == 2


@pytest.mark.usefixtures("cache")
def test_where_jax_knew_the_step_the_code_of_another_is_not_taken_for_it() -> None:
    ready = Builder()()

    def build() -> Compiled:
        jax.jit(lambda x: x + 1).lower(GIVEN["x"]).compile()
        return ready

    assert known().get("decode", 4, build) is ready
    with pytest.raises(ZeroDivisionError):
        known().get("decode", 4, lambda: 1 // 0)  # type: ignore[arg-type,return-value]


def test_where_code_is_not_kept_by_us_nothing_is_remembered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(traces, "opened_cache", lambda: None)
    build = Builder()
    for _ in range(2):
        known().get("decode", 4, build)

    assert build.count == 2


@pytest.mark.usefixtures("cache")
def test_an_engine_whose_steps_are_remembered_answers_as_before() -> None:
    jax.clear_caches()  # what this process has compiled before is not asked for again

    def made_by(build: Callable[[str, int], Compiled] | None) -> CompiledSteps:
        steps = CompiledSteps(engines.steps_of(engines.SINGLE), known("tiny").get)
        if build is not None:
            for key in steps._build:
                steps._build[key] = lambda key=key: build(*key)  # type: ignore[misc]
        steps.compile_all(lambda stage, done, total: None)
        return steps

    def never(kind: str, size: int) -> Compiled:
        raise AssertionError(f"{kind} {size} was traced")

    wish = SamplingParams(seed=7, max_new_tokens=9, ignore_eos=True, logprobs=3)
    request = GenerationRequest(prompt="once", sampling=wish)
    answers, states = [], []
    for build in (None, never):
        compiled = made_by(build)
        state: DecodeState = compiled.get("init", 0)()
        states.append(jax.tree.map(lambda leaf: leaf.sharding, state))
        parts = engines.Parts(sizes=engines.SINGLE, executables=compiled)
        with engines.running(parts) as engine:
            chunks = list(engine.generate(request))
        answers.append([entry for chunk in chunks for entry in chunk.logprobs or ()])

    assert answers[0] == answers[1] != []
    assert states[0] == states[1]


def test_a_cache_that_cannot_be_opened_is_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refused() -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr(traces, "opened_cache", refused)
    build = Builder()
    known().get("decode", 4, build)

    assert build.count == 1


@pytest.mark.filterwarnings("ignore:Error (reading|writing) persistent compilation")
@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("action", ["get", "put"])
def test_a_cache_that_cannot_be_read_or_written_is_none(
    action: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise OSError("no space left on device")

    opened = opened_cache()
    monkeypatch.setattr(type(opened), action, refused)
    build = Builder()
    for _ in range(2):
        known().get("decode", 4, build)

    assert build.count == 2


@pytest.mark.usefixtures("cache")
def test_what_building_raises_is_told() -> None:
    with pytest.raises(ZeroDivisionError):
        known().get("decode", 4, lambda: 1 // 0)  # type: ignore[arg-type,return-value]
