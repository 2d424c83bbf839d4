"""A folder of a Flax class answers as the same model in memory does."""

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import chex
import msgpack
import numpy as np
import pytest
from flax.serialization import to_bytes
from safetensors.numpy import save_file
from transformers import PreTrainedTokenizerFast

from jaxserver import JAXServer, hosting, wiring
from jaxserver.adapters.engine.compiling import CompiledSteps
from jaxserver.ports.config import ServerConfig
from jaxserver.ports.errors import BrokenCheckpoint
from jaxserver.ports.types import GenerationRequest, SamplingParams
from tests import engines
from tests.contract import tiny_tokenizers
from tests.fakes import known
from tests.flax_folders import flat, random_flax, save
from tests.tiny_flax import TinyFlax
from tests.unit.tiny_folder import nobody

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*is deprecated", "ignore:.*model-agnostic default"
)
ENCODER = tiny_tokenizers.single_digits()
VOCAB = ENCODER.get_vocab_size()
CONFIG = ServerConfig(
    slots=2,
    max_length=48,
    max_stream_tokens=4,
    mesh_axes_shape=(1, 1, 1),
    logging=False,
    pre_compile=False,
)
ONE_LAYER = {"gpt2": {"n_layer": 1}, "t5": {"num_layers": 1}}
PROMPTS = [tuple(np.random.default_rng(n).integers(3, 60, n).tolist()) for n in (3, 9)]


class Memory(NamedTuple):
    """A model that is served from memory, and what it answers."""

    tiny: TinyFlax
    compiled: CompiledSteps
    answers: list[Any]


def small(kind: str) -> TinyFlax:
    return random_flax(kind, vocab_size=VOCAB, **ONE_LAYER[kind])


def tokenizer() -> Any:
    return PreTrainedTokenizerFast(
        tokenizer_object=ENCODER, bos_token="<|im_start|>", eos_token="<|im_end|>"
    )


def answers(model: wiring.Model, compiled: CompiledSteps) -> list[Any]:
    """Tokens and log-probabilities of every prompt."""
    engine = wiring.start_engine(model, compiled, CONFIG, engines.Records(), known())
    wish = SamplingParams(temperature=0.7, seed=5, max_new_tokens=7, logprobs=2)
    asked = [GenerationRequest(prompt=prompt, sampling=wish) for prompt in PROMPTS]
    try:
        return [
            [entry for chunk in engine.generate(each) for entry in chunk.logprobs or ()]
            for each in asked
        ]
    finally:
        engine.close(5.0)


@pytest.fixture(scope="module")
def memory() -> Memory:
    tiny = small("gpt2")
    model = wiring.take_model(tiny.model, tiny.params, tokenizer(), CONFIG)
    compiled = wiring.compile_model(model, CONFIG, nobody)
    return Memory(tiny, compiled, answers(model, compiled))


def write_stream(tiny: TinyFlax, folder: Path) -> Path:
    """As EasyDeL writes it: pairs of a name's parts and the packed array."""
    save(tiny, folder).joinpath("flax_model.msgpack").unlink()
    with (folder / "streaming_params").open("wb") as file:
        for name, values in flat(tiny.params).items():
            parts = ("params", *name.split("/"))
            file.write(msgpack.packb((parts, to_bytes(values))))
    return folder


def write_pytorch(tiny: TinyFlax, folder: Path) -> Path:
    """PyTorch's names and layouts, as `transformers` undoes them."""
    save(tiny, folder).joinpath("flax_model.msgpack").unlink()
    named = {}
    for name, values in flat(tiny.params, ".").items():
        stem, _, last = name.rpartition(".")
        is_weight = last in ("kernel", "embedding", "scale")
        turned = values.T if last == "kernel" else values
        named[f"{stem}.weight" if is_weight else name] = np.ascontiguousarray(turned)
    save_file(named, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


WRITERS: dict[str, Callable[[TinyFlax, Path], Path]] = {
    "whole": save,
    "shards": lambda tiny, folder: save(tiny, folder, "shards"),
    "safetensors": lambda tiny, folder: save(tiny, folder, "safetensors"),
    "stream": write_stream,
    "pytorch": write_pytorch,
}


def write(tiny: TinyFlax, folder: Path, layout: str = "whole") -> ServerConfig:
    WRITERS[layout](tiny, folder)
    tokenizer().save_pretrained(folder)
    return dataclasses.replace(CONFIG, model=str(folder))


@pytest.mark.parametrize("layout", WRITERS)
def test_answers_are_those_of_the_model_in_memory(
    memory: Memory, layout: str, tmp_path: Path
) -> None:
    config = write(memory.tiny, tmp_path, layout)
    model = wiring.load_model(config, nobody)
    assert answers(model, memory.compiled) == memory.answers


@pytest.mark.parametrize("layout", ["shards", "pytorch"])
def test_a_model_with_an_encoder_is_that_in_memory(layout: str, tmp_path: Path) -> None:
    tiny = small("t5")
    config = write(tiny, tmp_path, layout)
    loaded = wiring.load_model(config, nobody)
    in_memory = wiring.take_model(tiny.model, tiny.params, tokenizer(), config)
    assert loaded.fns.encode is not None
    assert loaded.fns.decoder_prompt == in_memory.fns.decoder_prompt == (0,)
    assert loaded.engine == in_memory.engine
    assert loaded.tokenizer.eos_ids == in_memory.tokenizer.eos_ids
    chex.assert_trees_all_equal(flat(loaded.params), flat(in_memory.params))


@pytest.fixture
def server(
    memory: Memory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[JAXServer]:
    config = write(memory.tiny, tmp_path, "stream")
    monkeypatch.setattr(hosting, "compile_model", lambda *_: memory.compiled)
    server = JAXServer.load(tmp_path, dataclasses.replace(config, model="another"))
    yield server
    server.end()


def test_a_server_is_loaded_from_a_path(server: JAXServer, tmp_path: Path) -> None:
    greedy = SamplingParams(greedy=True, max_new_tokens=3, ignore_eos=True)
    stream = server.generate(GenerationRequest(prompt=PROMPTS[0], sampling=greedy))
    assert sum(len(chunk.token_ids) for chunk in stream) == 3
    assert server.status()["model"] == tmp_path.name


def test_a_plan_of_a_folder_reads_no_weights_and_is_what_is_then_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = small("gpt2")
    config = write(tiny, tmp_path)
    loaded = wiring.load_model(config, nobody)
    loaded.weights.result()
    monkeypatch.setattr(np, "empty", None)  # what arrays are read into
    plan = wiring.plan(config)
    assert plan == loaded.plan
    assert plan.num_parameters == sum(x.size for x in flat(tiny.params).values())


def test_the_folders_settings_for_answers_apply(tmp_path: Path) -> None:
    tiny = small("gpt2")
    config = write(tiny, tmp_path)
    settings = {"eos_token_id": [2, 7], "suppress_tokens": [9]}
    (tmp_path / "generation_config.json").write_text(json.dumps(settings), "utf-8")
    loaded = wiring.load_model(config, nobody)
    assert loaded.tokenizer.eos_ids == {2, 7}
    assert loaded.fns.rules.suppressed == (9,)


def test_a_weight_is_placed_before_the_next_one_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from jaxserver.adapters.checkpoints.msgpack_files import (  # noqa: PLC0415
        MsgpackTensors,
    )

    config = write(small("gpt2"), tmp_path)
    events: list[str] = []
    read = MsgpackTensors.read

    def counted(tensors: MsgpackTensors, name: str) -> Any:
        events.append("read")
        return read(tensors, name)

    monkeypatch.setattr(MsgpackTensors, "read", counted)
    model = wiring.load_model(
        config, lambda stage, done, total: events.append("placed")
    )
    model.weights.result()
    assert events == ["read", "placed"] * 16


def test_weights_are_rounded_to_the_type_that_is_asked_for(tmp_path: Path) -> None:
    tiny = small("gpt2")
    config = dataclasses.replace(write(tiny, tmp_path), dtype="bf16")
    in_memory = wiring.take_model(tiny.model, tiny.params, tokenizer(), config)
    loaded = flat(wiring.load_model(config, nobody).params)
    for name, values in flat(in_memory.params).items():
        np.testing.assert_array_equal(loaded[name], values)
    name = "transformer/wte/embedding"
    assert not np.array_equal(loaded[name], flat(tiny.params)[name])


def test_a_broken_folder_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    config = write(small("gpt2"), tmp_path)
    settings = json.loads((tmp_path / "config.json").read_bytes())
    (tmp_path / "config.json").write_text(json.dumps({**settings, "n_layer": 2}))
    with pytest.raises(
        BrokenCheckpoint, match=r"h\.1\..*: expected it among"
    ) as caught:
        wiring.plan(config)
    assert caught.value.file == str(tmp_path)
