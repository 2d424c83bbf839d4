"""Greedy answers of a Flax class: its own, and those of the whole engine over it."""

import contextlib
import functools
import inspect
import itertools
from collections.abc import Iterator, Sequence
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from transformers import PreTrainedTokenizerFast

from jaxserver import GenerationRequest, JAXServer, SamplingParams
from jaxserver.adapters.engine.dispatch import Device
from tests.contract.tiny_tokenizers import single_digits
from tests.tiny_flax import TinyFlax

Prompt = tuple[int, ...]
ENCODER = single_digits()
VOCAB = ENCODER.get_vocab_size()
POSITIONS = 160
"""No multiple of 128: rows that cannot be longer are cut into chunks of 32."""
NEW_TOKENS = 8
CONFIG: dict[str, Any] = {
    "slots": 4,
    "batch_size": 2,
    "max_length": POSITIONS,
    "max_stream_tokens": 4,
    "mesh_axes_shape": (1, 1, 1),
    "logging": False,
    "pre_compile": False,
}
PROMPTS: list[Prompt] = [
    tuple(np.random.default_rng(length).integers(5, VOCAB, length).tolist())
    for length in (5, 21, 140)
]
"""The longest is longer than any chunk."""
GREEDY = SamplingParams(greedy=True, max_new_tokens=NEW_TOKENS)


def tokenizer() -> Any:
    return PreTrainedTokenizerFast(
        tokenizer_object=ENCODER, bos_token="<|im_start|>", eos_token="<|im_end|>"
    )


@contextlib.contextmanager
def serving(tiny: TinyFlax, **config: Any) -> Iterator[JAXServer]:
    """The whole engine over a model in memory."""
    config = {**CONFIG, **config}
    server = JAXServer.load_from_params(tiny.model, tokenizer(), tiny.params, config)
    try:
        yield server
    finally:
        server.end()


def answered(server: JAXServer, prompts: Sequence[Prompt]) -> list[list[int]]:
    """Greedy answers to prompts that are all there at once."""
    requests = [GenerationRequest(prompt=prompt, sampling=GREEDY) for prompt in prompts]
    streams = [server.generate(request) for request in requests]
    return [[t for chunk in stream for t in chunk.token_ids] for stream in streams]


def pieces_of(server: JAXServer, prompt: Prompt) -> int:
    """In how many calls a prompt of this length is run, if nothing of it is there."""
    real, name = Device.prefill_orders, "prefill_orders"
    with mock.patch.object(Device, name, autospec=True, side_effect=real) as seen:
        answered(server, [prompt[::-1]])
    return seen.call_count


def assert_answers_are(server: JAXServer, expected: list[list[int]]) -> None:
    """Alone and in a batch of rows of different lengths, one entering a row left."""
    assert [answered(server, [prompt])[0] for prompt in PROMPTS] == expected
    company = [0, 2, 1, 0, 1, 2]
    found = answered(server, [PROMPTS[nth] for nth in company])
    assert found == [expected[nth] for nth in company]


def generated(tiny: TinyFlax, prompt: Prompt) -> list[int]:
    """What `generate` of the class itself answers."""

    @jax.jit
    def run(ids: Any, params: Any) -> Any:
        wish = {"max_new_tokens": NEW_TOKENS, "do_sample": False}
        return tiny.model.generate(ids, params=params, **wish).sequences

    answer = np.asarray(run(jnp.asarray([prompt], jnp.int32), tiny.params))[0]
    begin = 1 if tiny.model.config.is_encoder_decoder else len(prompt)
    return up_to_the_end(tiny, answer[begin:].tolist())


def chosen(tiny: TinyFlax, prompt: Prompt) -> list[int]:
    """The likeliest token, again and again, of the whole row run without a cache."""
    likeliest = likeliest_next(tiny)
    if not tiny.model.config.is_encoder_decoder:
        row = list(prompt)
        for _ in range(NEW_TOKENS):
            row.append(likeliest(row))
        return up_to_the_end(tiny, row[len(prompt) :])
    row = [tiny.model.generation_config.decoder_start_token_id]
    for _ in range(NEW_TOKENS):
        row.append(likeliest(row, prompt))
    return up_to_the_end(tiny, row[1:])


def likeliest_next(tiny: TinyFlax) -> Any:
    """A function of the rows of a decoder and of its encoder."""
    run = jax.jit(functools.partial(tiny.model.__call__, return_dict=True))
    has_types = "token_type_ids" in inspect.signature(tiny.model.__call__).parameters

    def likeliest(row: Sequence[int], *heard: Sequence[int]) -> int:
        # What follows a causal row is not seen, and so there is one shape to compile.
        padded = np.zeros((1, POSITIONS), np.int32)
        padded[0, : len(row)] = row
        inputs: dict[str, Any] = {"input_ids": padded}
        if heard:
            inputs = {"input_ids": np.asarray(heard, np.int32)}
            inputs["decoder_input_ids"] = padded
        if has_types:
            inputs["token_type_ids"] = np.zeros_like(padded)
        output = run(**inputs, params=tiny.params)
        return int(jnp.argmax(output.logits[0, len(row) - 1]))

    return likeliest


def up_to_the_end(tiny: TinyFlax, answer: list[int]) -> list[int]:
    """Without what follows one of the tokens that end an answer."""
    ends = {tiny.model.generation_config.eos_token_id, tokenizer().eos_token_id}
    ended = itertools.accumulate([False, *(token in ends for token in answer[:-1])])
    return [token for token, is_over in zip(answer, ended, strict=True) if not is_over]
