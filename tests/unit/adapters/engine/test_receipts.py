"""An answer that was asked for a receipt ends with one, and can be run again by it."""

import dataclasses
import itertools
from concurrent.futures import Future

import pytest
from hypothesis import given, settings

from jaxserver.ports.config import ServerConfig
from jaxserver.ports.errors import EngineFailed
from jaxserver.ports.receipt import Identity, Outcome, Receipt
from jaxserver.ports.types import (
    Chunk,
    FinishReason,
    GenerationRequest,
    SamplingParams,
)
from tests import engines
from tests.engines import Parts
from tests.fakes import IDENTITY, ByteTokenizer
from tests.strategies import sampling_params
from tests.unit.adapters.engine.answers import LONG, ids_of, request
from tests.waiting import eventually

ASKED = dataclasses.replace(request(), receipt=True)
CONFIG = ServerConfig(temperature=0.75, top_k=20, top_p=0.5, max_new_tokens=12)


def receipt_of(chunks: list[Chunk]) -> Receipt:
    receipt = chunks[-1].receipt
    assert receipt is not None
    return receipt


def test_it_is_in_the_last_chunk_and_nowhere_else() -> None:
    with engines.running() as engine:
        *before, last = engine.generate(ASKED)
        assert len(before) > 1
        assert all(chunk.receipt is None for chunk in before)
        assert last.receipt is not None
        assert last.receipt.identity == IDENTITY
        assert list(engine.generate(request()))[-1].receipt is None


def test_it_says_the_ids_that_were_run_and_answered() -> None:
    with engines.running() as engine:
        chunks = list(engine.generate(ASKED))

    receipt = receipt_of(chunks)
    assert receipt.request.prompt == (256, *b"abc")
    assert receipt.answer == Outcome.of(ids_of(chunks))


def test_it_leaves_nothing_to_the_server() -> None:
    silent = GenerationRequest(prompt="abc", receipt=True)
    with engines.running(Parts(config=CONFIG)) as engine:
        receipt = receipt_of(list(engine.generate(silent)))

    assert receipt.request.sampling == SamplingParams(
        temperature=0.75, top_k=20, top_p=0.5, max_new_tokens=12, seed=1000
    )
    assert receipt.end_ids == (257,)


def test_it_says_which_tokens_end_an_answer() -> None:
    asked = request(ignore_eos=False, stop_token_ids=(9, 4), max_new_tokens=2)
    with engines.running() as engine:
        ended = dataclasses.replace(asked, receipt=True)
        assert receipt_of(list(engine.generate(ended))).end_ids == (4, 9, 257)


def test_a_prompt_that_was_cut_is_said_as_it_was_run() -> None:
    prompt = "".join(map(str, range(300)))
    asked = dataclasses.replace(request(prompt), receipt=True, truncate=True)
    with engines.running() as engine:
        chunks = list(engine.generate(asked))
        receipt = receipt_of(chunks)
        repeated = list(engine.generate(receipt.request))

    usage = chunks[-1].usage
    assert usage.prompt_tokens_dropped > 0
    assert len(receipt.request.prompt) == usage.prompt_tokens
    assert receipt_of(repeated) == receipt


@given(sampling=sampling_params(ByteTokenizer.vocab_size - 3))
@settings(max_examples=15)
def test_it_replays_bitwise_through_json(sampling: SamplingParams) -> None:
    wish = dataclasses.replace(sampling, max_new_tokens=9)
    asked = GenerationRequest(prompt="abc", sampling=wish, receipt=True)
    with engines.running() as engine:
        first = receipt_of(list(engine.generate(asked)))
        second = receipt_of(
            list(engine.generate(Receipt.from_json(first.to_json()).request))
        )

    assert second == first
    assert (first.answer.logprobs is None) == (sampling.logprobs is None)


def test_it_says_which_of_several_answers_it_is_and_how_its_prompt_scored() -> None:
    asked = dataclasses.replace(
        request(logprobs=2), receipt=True, choice=3, score_prompt=True
    )
    with engines.running() as engine:
        first = receipt_of(list(engine.generate(asked)))
        other = receipt_of(list(engine.generate(dataclasses.replace(asked, choice=0))))
        second = receipt_of(list(engine.generate(first.request)))

    assert second == first
    assert first.answer.prompt_logprobs == other.answer.prompt_logprobs is not None
    assert first.answer.ids != other.answer.ids


def test_tokens_after_a_stop_string_are_no_part_of_it() -> None:
    with engines.running() as engine:
        whole = list(engine.generate(request()))
        text = "".join(chunk.text for chunk in whole)
        stop = next(c for c in text[5:] if c.isascii() and c.isprintable())
        asked = dataclasses.replace(request(stop=(stop,)), receipt=True)
        chunks = list(engine.generate(asked))

    assert chunks[-1].finish_reason is FinishReason.STOP
    assert len(ids_of(chunks)) < len(ids_of(whole))
    assert receipt_of(chunks).answer == Outcome.of(ids_of(chunks))


def test_an_answer_that_was_cancelled_has_none() -> None:
    with engines.gated() as (engine, gate):
        stream = engine.generate(dataclasses.replace(LONG, receipt=True))
        gate.allow(4)
        next(stream)
        stream.cancel()
        gate.open()
        *_, last = stream

    assert last.finish_reason is FinishReason.CANCELLED
    assert last.receipt is None


def test_only_those_who_ask_for_one_wait_until_the_model_is_known() -> None:
    unknown: Future[Identity] = Future()
    with engines.running(Parts(identity=unknown)) as engine:
        waiting = engine.generate(ASKED)
        early = list(itertools.islice(waiting, 3))
        assert list(engine.generate(request()))[-1].finish_reason is not None
        assert eventually(lambda: engine.stats.requests_served == 2)
        unknown.set_result(IDENTITY)
        late = list(waiting)

    assert early[0].token_ids
    assert receipt_of(late).answer == Outcome.of(ids_of([*early, *late]))


def test_a_model_that_could_not_be_read_again_fails_the_answer_that_asks() -> None:
    broken: Future[Identity] = Future()
    broken.set_exception(OSError("gone"))
    with engines.running(Parts(identity=broken)) as engine:
        with pytest.raises(EngineFailed, match="receipt could not be written: OSError"):
            list(engine.generate(ASKED))
        assert list(engine.generate(request()))[-1].finish_reason is not None
