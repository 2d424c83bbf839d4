"""A model and a tokenizer in memory, served with everything the engine offers."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers
from jax.extend.core import jaxprs_in_params

from jaxserver import GenerationRequest, JAXServer, SamplingParams
from jaxserver.adapters.flax_models.loading import without_weights
from jaxserver.adapters.flax_models.models import flax_model
from jaxserver.adapters.flax_models.weights import params_digest, plain_params
from jaxserver.ports.config import ServerConfig
from jaxserver.ports.errors import BrokenCheckpoint, InvalidRequest, UnsupportedModel
from jaxserver.ports.model import TokenBatch
from jaxserver.wiring import take_model
from tests.flax_answers import VOCAB, answered, generated, serving, tokenizer
from tests.tiny_flax import (
    CAUSAL,
    TinyFlax,
    causal,
    config_of,
    flax_class,
    longer,
    seq_to_seq,
)

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*is deprecated", "ignore:.*one_hot", "ignore:.*model-agnostic default"
)
CONFIG: dict[str, Any] = {
    "slots": 2,
    "max_length": 48,
    "max_stream_tokens": 4,
    "mesh_axes_shape": (1, 1, 1),
    "logging": False,
}
PROMPTS = [tuple(np.random.default_rng(n).integers(3, 60, n).tolist()) for n in (3, 9)]


@pytest.fixture(scope="module", params=["gpt2", "t5"])
def served(request: pytest.FixtureRequest) -> Iterator[tuple[TinyFlax, JAXServer]]:
    make = causal if request.param == "gpt2" else seq_to_seq
    tiny = make(request.param, vocab_size=VOCAB)
    server = JAXServer.load_from_params(tiny.model, tokenizer(), tiny.params, CONFIG)
    yield tiny, server
    server.end()


def test_answers_in_company_are_bitwise_those_alone(
    served: tuple[TinyFlax, JAXServer],
) -> None:
    _, server = served
    sampling = SamplingParams(temperature=1.0, seed=3, max_new_tokens=9, logprobs=2)
    wanted = [GenerationRequest(prompt=p, sampling=sampling) for p in PROMPTS * 2]

    alone = [list(server.generate(request)) for request in wanted]
    compiled = server.snapshot().compiles_after_ready
    streams = [server.generate(request) for request in wanted]

    def whole(chunks: Any) -> list[Any]:
        return [entry for chunk in chunks for entry in chunk.logprobs or ()]

    assert [whole(stream) for stream in streams] == [whole(chunks) for chunks in alone]
    assert server.snapshot().compiles_after_ready == compiled


def test_an_answer_goes_on_elsewhere_and_in_forks(
    served: tuple[TinyFlax, JAXServer], tmp_path: Path
) -> None:
    """What a token's bits depend on is run again from the prompt."""
    _, server = served
    wish = SamplingParams(temperature=1.0, seed=3, max_new_tokens=12, logprobs=2)
    asked = GenerationRequest(prompt=PROMPTS[1], sampling=wish)

    stream = server.generate(asked)
    next(stream)
    stream.save(tmp_path / "it")
    forks = stream.fork(2)
    rest = [entry for chunk in stream for entry in chunk.logprobs or ()]
    resumed = server.resume(tmp_path / "it")
    assert [entry for chunk in resumed for entry in chunk.logprobs or ()] == rest

    others = [tuple(t for chunk in fork for t in chunk.token_ids) for fork in forks]
    assert len({*others, tuple(entry.token_id for entry in rest)}) == 3


def test_a_score_is_refused_where_it_would_not_be_what_generating_gave(
    served: tuple[TinyFlax, JAXServer],
) -> None:
    _, server = served
    wish = SamplingParams(max_new_tokens=0, logprobs=0)
    asked = GenerationRequest(prompt=PROMPTS[1], sampling=wish, score_prompt=True)
    with pytest.raises(InvalidRequest, match="score_prompt"):
        list(server.generate(asked))


def test_fast_numerics_score_what_invariant_ones_refuse() -> None:
    tiny = causal("gpt2", vocab_size=VOCAB)
    config = {**CONFIG, "numerics": "fast", "dtype": "fp32"}
    server = JAXServer.load_from_params(tiny.model, tokenizer(), tiny.params, config)
    wish = SamplingParams(max_new_tokens=0, logprobs=0)
    prompt = PROMPTS[1]
    try:
        asked = GenerationRequest(prompt=prompt, sampling=wish, score_prompt=True)
        (scored,) = server.generate(asked)
        logits = tiny.model(np.array([prompt]), params=tiny.params).logits[0]
        expected = jax.nn.log_softmax(logits)[np.arange(len(prompt) - 1), prompt[1:]]
        assert scored.prompt_logprobs is not None
        found = [entry.logprob for entry in scored.prompt_logprobs]
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    finally:
        server.end()


def test_a_receipt_says_which_parameters_in_memory_were_served_and_replays(
    served: tuple[TinyFlax, JAXServer],
) -> None:
    tiny, server = served
    wish = SamplingParams(temperature=1.0, max_new_tokens=9, logprobs=2)
    asked = GenerationRequest(prompt=PROMPTS[0], sampling=wish, receipt=True)
    receipt = list(server.generate(asked))[-1].receipt
    assert receipt is not None
    assert receipt.identity.weights == params_digest(plain_params(tiny.params))
    assert receipt.identity.config["backend"] == "flax"
    assert "transformers" in receipt.identity.versions
    assert list(server.generate(receipt.request))[-1].receipt == receipt


def tiny_kinds() -> list[tuple[str, str, dict[str, Any]]]:
    vision = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    speech = {"encoder_layers": 1, "decoder_layers": 1}
    return [
        ("FlaxBertModel", "bert", vision),
        ("FlaxViTForImageClassification", "vit", vision),
        ("FlaxWhisperForConditionalGeneration", "whisper", speech),
    ]


@pytest.mark.parametrize(("name", "kind", "settings"), tiny_kinds())
def test_what_reads_no_text_or_has_no_head_is_refused_with_what_is_supported(
    name: str, kind: str, settings: dict[str, Any]
) -> None:
    model = getattr(transformers, name)(config_of(kind, **settings), _do_init=False)
    with pytest.raises(UnsupportedModel, match=f"{name}.*causal, or with an encoder"):
        JAXServer.load_from_params(model, tokenizer(), {}, CONFIG)


def test_a_setting_that_the_class_ignores_is_refused_by_name() -> None:
    tiny = causal("llama", mlp_bias=True)
    with pytest.raises(UnsupportedModel, match="mlp_bias True"):
        JAXServer.load_from_params(tiny.model, tokenizer(), tiny.params, CONFIG)


def test_a_table_of_learned_positions_cuts_the_length_and_one_line_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "jaxserver")
    tiny = causal("gpt2", vocab_size=VOCAB)
    lazy = {**CONFIG, "max_length": 100, "pre_compile": False}
    server = JAXServer.load_from_params(tiny.model, tokenizer(), tiny.params, lazy)
    server.end()
    assert server.status()["config"]["max_length"] == server.config.max_length == 64
    said = [record.message for record in caplog.records]
    assert said.count("max_length is cut to the model's 64 tokens") == 1
    assert sum("cut" in line for line in said) == 1


@pytest.mark.parametrize(
    ("kind", "settings", "length"),
    [
        ("big_bird", {"attention_type": "block_sparse", "block_size": 8}, 56),
        ("llama", {"max_position_embeddings": 64}, 64),
    ],
)
def test_rows_are_no_longer_than_the_model_knows_its_way(
    kind: str, settings: dict[str, Any], length: int
) -> None:
    """PyTorch's sparse attention is full attention up to 5 and 2 more blocks."""
    config = config_of(kind, **{**CAUSAL[kind], **longer(kind, 512), **settings})
    if kind == "big_bird":
        config.num_random_blocks = 1
    model = flax_class(kind)(config, _do_init=False)
    assert flax_model(model, 200).fns.max_len == length


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda params: {"params": params}, None),
        (lambda params: {}, "expected shape .* found none"),
        (
            lambda params: {**params, "more": np.ones(3)},
            "more: expected no such, found",
        ),
    ],
)
def test_parameters_are_looked_at_before_they_are_placed(
    change: Callable[[Any], Any], message: str | None
) -> None:
    tiny = causal("gpt2", vocab_size=VOCAB)
    lazy = {**CONFIG, "pre_compile": False}
    given = change(tiny.params) or {"transformer": {}}
    if message is None:
        JAXServer.load_from_params(tiny.model, tokenizer(), given, lazy).end()
        return
    with pytest.raises(BrokenCheckpoint, match=message):
        JAXServer.load_from_params(tiny.model, tokenizer(), given, lazy)


@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma", "gptj", "xglm"])
def test_a_context_that_is_not_wanted_takes_no_memory(kind: str) -> None:
    """One mask of all its positions squared would be 16 GiB."""
    config = config_of(kind, **{**CAUSAL[kind], **longer(kind, 131_072)})
    served = flax_model(flax_class(kind)(config, _do_init=False), 64)

    batch = TokenBatch(
        tokens=jnp.zeros((1, 64), jnp.int32),
        start=jnp.zeros(1, jnp.int32),
        length=jnp.full(1, 64, jnp.int32),
        page_table=None,
        logits_at=jnp.zeros((1, 1), jnp.int32),
    )
    cache = jax.eval_shape(lambda: served.fns.init_cache(1))
    traced = jax.make_jaxpr(served.fns.extend)(served.shapes, cache, batch)
    sizes = [each.size for each in (*traced.consts, *outputs_of(traced.jaxpr))]
    assert max(sizes) < 64 * 64 * 64


def outputs_of(jaxpr: Any) -> list[Any]:
    """The shape of everything that is computed."""
    found = [var.aval for equation in jaxpr.eqns for var in equation.outvars]
    for equation in jaxpr.eqns:
        for inner in jaxprs_in_params(equation.params):
            found += outputs_of(inner)
    return found


@pytest.mark.filterwarnings("ignore:Some non-default generation parameters")
def test_a_first_token_is_forced_as_generate_forces_it() -> None:
    settings = {"forced_bos_token_id": 9, "decoder_start_token_id": 4}
    tiny = seq_to_seq("mbart", vocab_size=VOCAB, **settings)
    expected = generated(tiny, PROMPTS[1])
    assert expected[0] == 9
    with serving(tiny, max_length=48) as server:
        assert answered(server, [PROMPTS[1]]) == [expected]


def test_generation_settings_are_part_of_what_a_model_in_memory_is() -> None:
    tiny = causal("gpt2", vocab_size=VOCAB)
    config = ServerConfig.of(CONFIG)

    def settings() -> str | None:
        model = take_model(tiny.model, tiny.params, tokenizer(), config)
        return model.digests.result().settings

    before = settings()
    assert settings() == before
    tiny.model.generation_config.no_repeat_ngram_size = 2
    assert settings() != before


def test_an_encoder_that_is_called_otherwise_is_refused_with_what_is_supported() -> (
    None
):
    encoder = config_of("big_bird", **CAUSAL["big_bird"])
    decoder = config_of("gpt2", **CAUSAL["gpt2"], add_cross_attention=True)
    config = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(
        encoder, decoder, decoder_start_token_id=1, pad_token_id=0, eos_token_id=2
    )
    with pytest.raises(UnsupportedModel, match=r"FlaxEncoderDecoder.*token_type_ids"):
        without_weights(transformers.FlaxEncoderDecoderModel, config, jnp.float32)
