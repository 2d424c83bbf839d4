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


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, 2),
        ({"slots": 16}, 2),
        ({"slots": 6}, 1),
        ({"slots": 9}, 1),
        ({"platform": "gpu"}, 1),
        ({"devices": 2}, 1),
        ({"page_size": 64}, 1),
        ({"num_pages": 8}, 1),
        ({"chunk": 128}, 1),
        ({"cores": 1}, 1),
    ],
)
def test_a_processor_has_two_lanes_where_rows_are_independent_and_slots_enough(
    monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], expected: int
) -> None:
    usual = dict(platform="cpu", devices=1, page_size=128, num_pages=None, chunk=None)
    given = SimpleNamespace(**{**usual, "slots": 8, "cores": 2, **change})
    monkeypatch.setattr(sizing, "num_cores", lambda: given.cores)
    fns = SimpleNamespace(page_size=given.page_size, max_len=128, chunk=given.chunk)
    place = SimpleNamespace(mesh=SimpleNamespace(size=given.devices))
    backend: Any = SimpleNamespace(fns=fns, place=place)
    config = ServerConfig(num_pages=given.num_pages)
    found = sizing._num_lanes(given.slots, given.platform, config, backend)
    assert found == expected
