"""A checkpoint on disk becomes an engine that answers."""

import contextlib
import dataclasses
import json
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxserver import sizing, wiring
from jaxserver.adapters.engine.compiling import COMPILES, CompiledSteps
from jaxserver.adapters.engine.dispatch import Device
from jaxserver.adapters.engine.orders import Order
from jaxserver.core.steps import Outcome
from jaxserver.hearing import hear_requests
from jaxserver.ports.config import DTYPES, ServerConfig
from jaxserver.ports.errors import BrokenCheckpoint, ModelNotFound
from jaxserver.ports.model import Params, TokenBatch
from jaxserver.ports.telemetry import Telemetry
from jaxserver.ports.types import GenerationRequest, Message, SamplingParams
from tests import engines
from tests.fakes import known
from tests.processors import PROCESSORS
from tests.unit.tiny_folder import SETTINGS, VOCAB, nobody, write_model


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ServerConfig:
    return ServerConfig(
        model=str(write_model(tmp_path_factory.mktemp("tiny"))),
        slots=4,
        batch_size=4,
        max_length=2048,
        max_stream_tokens=8,
        mesh_axes_shape=(1, 1, 1),
        dtype="fp32",
    )


@pytest.fixture(scope="module")
def model(config: ServerConfig) -> wiring.Model:
    return wiring.load_model(config, nobody)


CACHE = "jax_compilation_cache_dir"


@contextlib.contextmanager
def compile_cache(folder: Path | None) -> Iterator[None]:
    """Has JAX keep compiled code there, and leaves its settings as they were."""
    names = [
        CACHE,
        "jax_persistent_cache_min_compile_time_secs",
        "jax_persistent_cache_min_entry_size_bytes",
    ]
    before = {name: getattr(jax.config, name) for name in names}
    jax.config.update(CACHE, None if folder is None else str(folder))
    try:
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


def test_a_folder_becomes_a_model_with_tokenizer_and_template(
    model: wiring.Model,
) -> None:
    assert model.fns.vocab_size == model.tokenizer.vocab_size == VOCAB
    assert model.tokenizer.eos_ids == {2}
    asked = [Message(role="user", content="hello")]
    assert model.formatter.format(asked) == "<|im_start|>hello<|im_end|>!"


def test_the_engine_has_the_configured_sizes_and_the_models_length(
    model: wiring.Model,
) -> None:
    assert model.engine.slots == 4
    assert model.engine.prefill_rows == 4
    assert model.engine.max_stream_tokens == 8
    assert model.engine.max_len == model.fns.max_len == 128


def test_loading_reports_its_progress_to_the_end(config: ServerConfig) -> None:
    heard: list[tuple[str, int, int]] = []
    model = wiring.load_model(config, lambda *progress: heard.append(progress))
    model.weights.result()
    stages = {stage for stage, _, _ in heard}

    assert stages == {"load"}
    assert heard[-1][1] == heard[-1][2] > 0


def test_a_plan_is_what_loading_then_takes(
    config: ServerConfig, model: wiring.Model
) -> None:
    plan = wiring.plan(config)

    assert plan == model.plan
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(model.params))
    assert plan.weights_bytes_per_device == held


def test_a_plan_reads_no_weights(config: ServerConfig, tmp_path: Path) -> None:
    folder = write_model(tmp_path)
    whole = (folder / "model.safetensors").read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(header)
        file.write(bytes(len(whole) - header))

    other = dataclasses.replace(config, model=str(folder))
    assert wiring.plan(other).num_parameters == wiring.plan(config).num_parameters


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_16_bit_weights_are_computed_in_float32_on_a_cpu_and_that_is_said(
    config: ServerConfig,
    model: wiring.Model,
    caplog: pytest.LogCaptureFixture,
    dtype: str,
) -> None:
    half = dataclasses.replace(config, dtype=dtype, quantize="none")
    with caplog.at_level(logging.INFO, "jaxserver"):
        loaded = wiring.load_model(half, nobody)

    rounded = jax.tree.map(lambda leaf: leaf.astype(DTYPES[dtype]), model.params)
    chex.assert_trees_all_equal(loaded.params, rounded, strict=True)
    kept_in = f"{DTYPES[dtype]} weights are kept in {DTYPES[dtype]}"
    assert f"{kept_in} and computed in float32" in caplog.text
    assert loaded.plan.working_bytes_per_device > 0


@pytest.mark.parametrize(
    ("dtype", "kept"), [("fp16", "int8"), ("bf16", "int8"), ("fp32", "none")]
)
def test_weights_of_16_bits_are_kept_in_int8_on_a_cpu_where_nobody_chose(
    config: ServerConfig, dtype: str, kept: str
) -> None:
    silent, chosen = (
        wiring.load_model(
            dataclasses.replace(config, dtype=dtype, quantize=quantize), nobody
        )
        for quantize in ("auto", kept)
    )
    chex.assert_trees_all_equal(silent.params, chosen.params, strict=True)
    assert silent.plan == chosen.plan


@pytest.mark.parametrize("quantize", ["int8", "fp8"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_model_in_8_bits_takes_what_its_plan_says_and_answers_nearly_the_same(
    config: ServerConfig,
    model: wiring.Model,
    caplog: pytest.LogCaptureFixture,
    dtype: str,
    quantize: str,
) -> None:
    asked = dataclasses.replace(config, dtype=dtype, quantize=quantize)
    with caplog.at_level(logging.INFO, "jaxserver"):
        loaded = wiring.load_model(asked, nobody)

    assert wiring.plan(asked) == loaded.plan
    kept = {"int8": "int8", "fp8": "float8_e4m3fn"}[quantize]
    assert loaded.plan.dtype == kept
    assert (loaded.plan.working_bytes_per_device > 0) == (quantize == "fp8")
    assert loaded.plan.num_parameters == model.plan.num_parameters
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(loaded.params))
    assert loaded.plan.weights_bytes_per_device == held
    # The head, most of this model, is kept with a second byte in int8.
    less = {"int8": 2, "fp8": 3}[quantize]
    assert held < model.plan.weights_bytes_per_device / less
    assert f"{DTYPES[dtype]} weights are kept in {kept} and" in caplog.text
    found, expected = next_logits(loaded), next_logits(model)
    assert 0 < np.abs(found - expected).max() < np.abs(expected).max() / 10


def next_logits(model: wiring.Model) -> Any:
    batch = TokenBatch(
        tokens=jnp.asarray([[3, 9, 4, 7]], jnp.int32),
        start=jnp.asarray([0], jnp.int32),
        length=jnp.asarray([4], jnp.int32),
        page_table=None,
        logits_at=jnp.asarray([[3]], jnp.int32),
    )
    return jax.jit(model.fns.extend)(model.params, model.fns.init_cache(1), batch)[0]


def test_the_number_of_slots_is_chosen_by_device_where_nobody_does(
    config: ServerConfig,
) -> None:
    unsaid = dataclasses.replace(config, slots=None)

    assert wiring.plan(unsaid).slots == sizing.DEFAULT_SLOTS["cpu"]


def test_a_model_that_is_not_there_says_what_to_do(config: ServerConfig) -> None:
    lost = dataclasses.replace(config, model="/nowhere/at/all")

    with pytest.raises(ModelNotFound):
        wiring.load_model(lost, nobody)


def test_a_weight_of_another_shape_is_named(
    config: ServerConfig, tmp_path: Path
) -> None:
    folder = write_model(tmp_path)
    (folder / "config.json").write_text(
        json.dumps({**SETTINGS, "intermediate_size": 64}), "utf-8"
    )
    other = dataclasses.replace(config, model=str(folder))

    with pytest.raises(BrokenCheckpoint, match="mlp"):
        wiring.load_model(other, nobody)


def test_nothing_is_compiled_early_when_told_not_to(
    config: ServerConfig, model: wiring.Model
) -> None:
    before = COMPILES.count
    later = dataclasses.replace(config, pre_compile=False)
    wiring.compile_model(model, later, nobody)

    assert COMPILES.count == before


@pytest.mark.parametrize("told", [None, "elsewhere"])
def test_compiled_code_is_kept_in_our_cache_unless_jax_was_told_where(
    config: ServerConfig,
    model: wiring.Model,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    told: str | None,
) -> None:
    monkeypatch.setenv("JAXSERVER_CACHE", str(tmp_path))
    with compile_cache(None if told is None else tmp_path / told):
        later = dataclasses.replace(config, pre_compile=False)
        wiring.compile_model(model, later, nobody)
        kept = getattr(jax.config, CACHE)

    assert kept == str(tmp_path / (told or "compiled"))


def test_traces_are_remembered_where_all_that_they_are_made_of_can_be_said(
    model: wiring.Model,
) -> None:
    fns = model.fns._replace(processors=tuple(PROCESSORS.items()))
    told = [model, model._replace(fns=fns), model._replace(made_of=None)]
    known = [wiring._remembered(each) for each in told]

    assert known[0] is not None
    assert known[1:] == [None, None]


def test_each_configuration_has_remembered_its_own(
    config: ServerConfig, model: wiring.Model
) -> None:
    others = [
        dataclasses.replace(config, slots=8),
        dataclasses.replace(config, max_length=64),
        dataclasses.replace(config, quantize="int8"),
        dataclasses.replace(config, page_size=64, num_pages=64),
    ]
    models = [model, *(wiring.load_model(other, nobody) for other in others)]

    def name_of(model: wiring.Model) -> str:
        records: Any = wiring._remembered(model)
        name: str = records.__self__._name
        return name

    names = {name_of(each) for each in models}
    assert len(names) == len(models)
    assert name_of(wiring.load_model(config, nobody)) in names


@pytest.fixture(scope="module")
def compiled(config: ServerConfig, model: wiring.Model) -> CompiledSteps:
    heard: list[tuple[str, int, int]] = []
    made = wiring.compile_model(model, config, lambda *one: heard.append(one))
    made.finish()
    assert heard == [("compile", count, 9) for count in range(1, 10)]
    return made


def heard(config: ServerConfig) -> Telemetry:
    """Who hears of requests, besides one who hears of all of them."""
    return hear_requests(config, engines.Records())


def test_what_is_wired_together_answers_its_prompts(
    config: ServerConfig,
    model: wiring.Model,
    compiled: CompiledSteps,
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine = wiring.start_engine(
        model, compiled, config, heard(config), known(), lambda: 11
    )
    try:
        with caplog.at_level(logging.INFO, "jaxserver"):
            asked = GenerationRequest(
                prompt="the quick",
                sampling=SamplingParams(max_new_tokens=20, ignore_eos=True),
            )
            chunks = list(engine.generate(asked))
            again = list(engine.generate(asked))
    finally:
        engine.close(5.0)

    ids = [token for chunk in chunks for token in chunk.token_ids]
    assert len(ids) == 20
    assert "".join(chunk.text for chunk in chunks) == model.tokenizer.decode(ids)
    assert chunks[-1].seed == 11
    assert ids == [token for chunk in again for token in chunk.token_ids]
    lines = [r for r in caplog.records if "completion_tokens" in r.getMessage()]
    assert len(lines) == 2


def test_weights_that_come_late_take_the_place_of_zeros(
    config: ServerConfig,
    model: wiring.Model,
    compiled: CompiledSteps,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    late: Future[Params] = Future()
    warm_up, seen = Device.warm_up, []

    def warm_up_first(device: Device, check: Callable[[], None]) -> None:
        seen.append([bool(np.asarray(x).any()) for x in jax.tree.leaves(device.params)])
        warm_up(device, check)
        late.set_result(model.params)

    monkeypatch.setattr(Device, "warm_up", warm_up_first)
    asked = GenerationRequest(
        prompt="the quick", sampling=SamplingParams(greedy=True, max_new_tokens=8)
    )
    answers = []
    for one in (model._replace(weights=late), model):
        engine = wiring.start_engine(one, compiled, config, heard(config), known())
        try:
            stream = engine.generate(asked)
            answers.append([token for chunk in stream for token in chunk.token_ids])
        finally:
            engine.close(5.0)
        monkeypatch.setattr(Device, "warm_up", warm_up)
    assert answers[0] == answers[1]
    assert not any(seen[0])


@pytest.mark.parametrize("num_run", [0, 1])
def test_weights_that_cannot_be_read_end_the_start_before_the_next_step(
    config: ServerConfig,
    model: wiring.Model,
    compiled: CompiledSteps,
    monkeypatch: pytest.MonkeyPatch,
    num_run: int,
) -> None:
    weights: Future[Params] = Future()
    error = BrokenCheckpoint("a", "b", expected="c", found="d")
    run, ran = Device._run, []

    def run_and_fail(device: Device, order: Order) -> Outcome:
        ran.append(order.kind)
        weights.set_exception(error)
        return run(device, order)

    monkeypatch.setattr(Device, "_run", run_and_fail)
    if num_run == 0:
        weights.set_exception(error)
    lost = model._replace(weights=weights)
    with pytest.raises(BrokenCheckpoint, match="expected c, found d"):
        wiring.start_engine(lost, compiled, config, heard(config), known())
    assert len(ran) == num_run


@pytest.mark.parametrize("logging_", [True, False])
def test_requests_are_logged_as_configured(
    config: ServerConfig,
    model: wiring.Model,
    compiled: CompiledSteps,
    caplog: pytest.LogCaptureFixture,
    logging_: bool,
) -> None:
    told = dataclasses.replace(config, logging=logging_)
    engine = wiring.start_engine(model, compiled, told, heard(told), known())
    with caplog.at_level(logging.INFO, "jaxserver"):
        asked = GenerationRequest(
            prompt=(5,), sampling=SamplingParams(max_new_tokens=1)
        )
        list(engine.generate(asked))
        engine.close(5.0)

    assert bool(caplog.records) == logging_
