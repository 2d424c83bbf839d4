"""Strict JAX, eight devices, Hypothesis profiles, the default model as a fixture."""

import os
from pathlib import Path

import chex
import hypothesis
import jax
import pytest

from jaxserver.adapters.checkpoints.cache import cache_folder
from jaxserver.adapters.checkpoints.locate import locate
from jaxserver.adapters.engine.compile_cache import keep_compiled_code
from jaxserver.ports.config import DEFAULT_MODEL

jax.config.update("jax_num_cpu_devices", 8)

hypothesis.settings.register_profile("dev", max_examples=25, deadline=None)
hypothesis.settings.register_profile(
    "ci", max_examples=30, deadline=None, derandomize=True, print_blob=True
)
hypothesis.settings.register_profile("nightly", max_examples=5000, deadline=None)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden", action="store_true", help="rewrite the golden files"
    )
    parser.addoption(
        "--every-class",
        action="store_true",
        help="every Flax class of transformers that answers with text, not a few",
    )
    parser.addoption(
        "--every-mesh",
        action="store_true",
        help="every model of the sharding tests on every mesh, not a few",
    )


def pytest_configure() -> None:
    """What is compiled once is compiled for all workers, servers and sessions."""
    keep_compiled_code(cache_folder() / "compiled")


@pytest.fixture(autouse=True)
def _trace_counts() -> None:
    """`chex.assert_max_traces` counts by definition: every test begins at none."""
    chex.clear_trace_counter()


@pytest.fixture
def strict_jax() -> object:
    """No implicit promotion of dtypes or ranks."""
    with (
        jax.numpy_dtype_promotion("strict"),
        jax.numpy_rank_promotion("raise"),
    ):
        yield


@pytest.fixture(scope="session")
def default_model_path() -> Path:
    """The default model's file, fetched once; a test that cannot have it fails."""
    return locate(DEFAULT_MODEL, lambda stage, done, total: None)
