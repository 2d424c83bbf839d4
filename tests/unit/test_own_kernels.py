"""Whether a model is run by our own kernels, and what is remembered of it then."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxserver import backends, wiring
from jaxserver.core.compute import Compute
from jaxserver.ports.config import ServerConfig
from jaxserver.ports.errors import InvalidConfig
from jaxserver.ports.model import TokenBatch
from tests.tiny import TinyModel, tiny_model
from tests.unit.tiny_folder import nobody, write_model


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ServerConfig:
    return ServerConfig(
        model=str(write_model(tmp_path_factory.mktemp("tiny"))),
        slots=4,
        mesh_axes_shape=(1, 1, 1),
        dtype="fp16",
        kernels="native",
        pre_compile=False,
    )


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"quantize": "none"}, "native for weights in float16 on 1 cpu devices"),
        ({"mesh_axes_shape": (1, 2, 1)}, "native for weights in int8 on 2 cpu devices"),
    ],
)
def test_kernels_are_for_int8_on_one_processor(
    config: ServerConfig, changed: dict[str, Any], message: str
) -> None:
    asked = dataclasses.replace(config, **changed)
    with pytest.raises(InvalidConfig, match=f"kernels: got {message}, allowed is xla"):
        wiring.load_model(asked, nobody)


def test_steps_made_with_kernels_are_not_those_of_other_kernels(
    config: ServerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = []

    def register(folder: Path) -> str:
        folders.append(folder)
        return "their name"

    monkeypatch.setattr(backends, "register_kernels", register)
    plain = dataclasses.replace(config, kernels="xla")
    told, untold = (wiring.load_model(each, nobody) for each in (config, plain))
    assert (told.kernels, untold.kernels) == ("their name", "")
    assert told.made_of != untold.made_of
    assert [folder.name for folder in folders] == ["kernels"]


def test_two_models_in_one_process_keep_their_own() -> None:
    """Whichever of them is compiled first."""
    made = [tiny_model(kept="int8", compute=Compute(kernels=k)) for k in ("", "theirs")]
    for model in (*made, *made[::-1]):
        lowered = jax.jit(model.fns.extend).lower(model.params, *given(model)).as_text()
        is_theirs = model is made[1]
        assert ("theirs_int8_product" in lowered) == is_theirs
        assert ("theirs_attention" in lowered) == is_theirs


def given(model: TinyModel) -> tuple[Any, TokenBatch]:
    """One row of four tokens, on an empty cache."""
    tokens: Any = np.zeros((1, 4), np.int32)
    start, length, read = tokens[:, 0], tokens[:, 0] + 4, tokens[:, :1]
    batch = TokenBatch(tokens, start, length, None, read)
    return model.fns.init_cache(1), batch
