"""Sizes that nobody chose."""

import logging
from types import SimpleNamespace
from typing import Any

import pytest

from jaxserver import sizing
from jaxserver.ports.config import ServerConfig


@pytest.mark.parametrize(
    ("speculate", "platform", "numerics", "expected"),
    [
        ("ngram", "cpu", "invariant", True),
        ("ngram", "cpu", "fast", True),
        ("none", "cpu", "fast", False),
        ("ngram", "gpu", "invariant", False),
        ("./small", "tpu", "invariant", False),
        ("ngram", "gpu", "fast", True),
        ("none", "gpu", "invariant", False),
    ],
)
def test_tokens_are_guessed_where_no_bit_changes_or_nobody_minds(
    caplog: pytest.LogCaptureFixture,
    speculate: str,
    platform: str,
    numerics: str,
    expected: bool,
) -> None:
    config = ServerConfig(speculate=speculate, numerics=numerics)
    with caplog.at_level(logging.INFO, "jaxserver"):
        assert sizing._speculates(config, platform) == expected
    is_told = "only with numerics = fast" in caplog.text
    assert is_told == (speculate != "none" and not expected)


@pytest.mark.parametrize(
    ("platform", "kind", "kept", "kernels", "expected"),
    [
        ("cpu", "native", "int8", "", False),
        ("cpu", "native", "int8", "jaxserver", True),
        ("cpu", "native", "float32", "", True),
        ("cpu", "flax", "float32", "", True),
        ("gpu", "native", "int8", "", True),
    ],
)
def test_guesses_cost_something_where_one_token_is_multiplied_alone(
    platform: str, kind: str, kept: str, kernels: str, expected: bool
) -> None:
    backend: Any = SimpleNamespace(kind=kind, kept=kept, kernels=kernels)
    assert sizing._guesses_are_free(backend, platform) == expected
