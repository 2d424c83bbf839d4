"""Causal classes with their settings moved have PyTorch's logits, or are refused."""

import copy
import json
from pathlib import Path
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from transformers import PretrainedConfig

from jaxserver.adapters.flax_models.models import flax_model
from jaxserver.adapters.flax_models.settings import served_config
from jaxserver.ports.errors import UnsupportedModel
from jaxserver.ports.model import TokenBatch
from tests.flax_variants import INERT_EVERYWHERE, KINDS, TIME, VARIANTS, moved
from tests.tiny_flax import CAUSAL, config_of, flax_class

FOLDER = Path(__file__).parents[1] / "reference" / "flax_variants"
TOLERANCE = 1e-4
FEW = [
    *(("electra", "projected"), ("gemma", "biased"), ("gpt2", "narrow")),
    *(("mistral", "windowed"), ("opt", "projected")),
]
REFUSED = [(kind, name) for kind, known in KINDS.items() for name in known.refused]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A few variants, or with `--every-class` all of them."""
    if "variant" in metafunc.fixturenames:
        is_every = metafunc.config.getoption("--every-class")
        metafunc.parametrize(("kind", "variant"), VARIANTS if is_every else FEW)


def model_of(kind: str, settings: Any) -> Any:
    return flax_class(kind)(config_of(kind, **copy.deepcopy(settings)), _do_init=False)


def test_settings_off_their_defaults_have_the_logits_of_pytorch(
    kind: str, variant: str
) -> None:
    settings = KINDS[kind].variants[variant]
    with safe_open(FOLDER / f"{kind}_{variant}.safetensors", "numpy") as file:
        assert json.loads(file.metadata()["settings"]) == json.loads(
            json.dumps(settings)
        )
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
    tokens, expected = arrays.pop("tokens"), arrays.pop("logits")
    params = flax.traverse_util.unflatten_dict(
        {tuple(path.split("/")): leaf.astype("f4") for path, leaf in arrays.items()}
    )

    served = flax_model(model_of(kind, settings), TIME)
    time = jnp.arange(TIME, dtype=jnp.int32)
    batch = TokenBatch(
        tokens=jnp.asarray(tokens[None]),
        start=jnp.zeros(1, jnp.int32),
        length=jnp.full(1, TIME, jnp.int32),
        page_table=None,
        logits_at=time[None],
    )
    logits, _ = jax.jit(served.fns.extend)(params, served.fns.init_cache(1), batch)

    np.testing.assert_allclose(logits[0], expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(("kind", "name"), REFUSED)
def test_a_setting_that_the_class_does_not_apply_is_refused(
    kind: str, name: str
) -> None:
    known = KINDS[kind]
    first = next(iter(known.variants.values()))
    config = config_of(kind, **copy.deepcopy(first))
    setattr(config, name, known.refused[name])
    with pytest.raises(UnsupportedModel, match=name):
        served_config(config, is_causal=True)


@pytest.mark.parametrize("kind", KINDS)
def test_no_setting_is_left_out(kind: str) -> None:
    known, defaults = KINDS[kind], config_of(kind).to_dict()
    told = moved(kind, defaults) | known.refused.keys()
    inert = known.inert | INERT_EVERYWHERE
    names = defaults.keys() | PretrainedConfig().to_dict().keys()
    derived = {"attention_layers"} & names  # of the attention's types
    assert names - told - inert - derived == set()
    assert told & inert == set()


def test_every_causal_class_is_among_them() -> None:
    assert CAUSAL.keys() - {"gpt-sw3"} == KINDS.keys()
