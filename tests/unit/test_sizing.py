"""Sizes that nobody chose."""

import logging

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
