"""A model and a tokenizer in memory, served with everything the engine offers."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from jaxserver import GenerationRequest, JAXServer, SamplingParams
from jaxserver.ports.errors import UnsupportedModel
from tests.contract.tiny_tokenizers import single_digits
from tests.tiny_flax import TinyFlax, causal, seq_to_seq

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*is deprecated", "ignore:.*one_hot", "ignore:.*model-agnostic default"
)
ENCODER = single_digits()
VOCAB = ENCODER.get_vocab_size()
CONFIG: dict[str, Any] = {
    "slots": 2,
    "max_length": 48,
    "max_stream_tokens": 4,
    "mesh_axes_shape": (1, 1, 1),
    "logging": False,
}
PROMPTS = [tuple(np.random.default_rng(n).integers(3, 60, n).tolist()) for n in (3, 9)]


def tokenizer() -> Any:
    return PreTrainedTokenizerFast(
        tokenizer_object=ENCODER, bos_token="<|im_start|>", eos_token="<|im_end|>"
    )


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


def test_a_model_without_a_head_is_refused() -> None:
    from transformers import BertConfig, FlaxBertModel  # noqa: PLC0415  # slow

    config = BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
    with pytest.raises(UnsupportedModel, match="FlaxBertModel"):
        JAXServer.load_from_params(FlaxBertModel(config), tokenizer(), None, CONFIG)


def test_a_setting_that_the_class_ignores_is_refused_by_name() -> None:
    tiny = causal("llama", mlp_bias=True)
    with pytest.raises(UnsupportedModel, match="mlp_bias True"):
        JAXServer.load_from_params(tiny.model, tokenizer(), tiny.params, CONFIG)
