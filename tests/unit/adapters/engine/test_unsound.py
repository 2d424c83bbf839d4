"""What is no number fails the request that met it, and touches nobody else."""

import dataclasses

import jax.numpy as jnp
import pytest

from jaxserver.ports.errors import EngineFailed
from jaxserver.ports.model import Params
from tests import engines
from tests.unit.adapters.engine.answers import ids_of, request

SPOILT = 200
"""The token whose embedding is not a number."""


def spoilt_params() -> Params:
    params = engines.model().params
    embedding = params.embedding.at[SPOILT].set(jnp.nan)
    return dataclasses.replace(params, embedding=embedding)


def spoilt() -> engines.Parts:
    return engines.Parts(params=spoilt_params())


def test_a_prompt_that_makes_no_number_fails_alone() -> None:
    with engines.running(spoilt()) as engine:
        alone = ids_of(engine.generate(request()))
        good = [engine.generate(request()) for _ in range(3)]
        bad = engine.generate(request((1, SPOILT, 2)))

        with pytest.raises(EngineFailed, match="not numbers for this request"):
            list(bad)
        assert [ids_of(stream) for stream in good] == [alone] * 3
        assert engine.is_alive()


def test_an_answer_that_makes_no_number_fails_after_what_it_has() -> None:
    with engines.running(spoilt()) as engine:
        stream = engine.generate(request(logit_bias={SPOILT: 100.0}))
        assert next(stream).token_ids == (SPOILT,)

        with pytest.raises(EngineFailed, match="not numbers"):
            list(stream)


def test_the_slot_of_what_was_no_number_serves_the_next_as_before() -> None:
    with engines.running(spoilt()) as engine:
        alone = ids_of(engine.generate(request()))
        for _ in range(6):
            with pytest.raises(EngineFailed):
                list(engine.generate(request((SPOILT,) * 100)))

            assert ids_of(engine.generate(request())) == alone
