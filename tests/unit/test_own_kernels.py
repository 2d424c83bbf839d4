"""Whether a model is run by our own kernels, and what is remembered of it then."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from jaxserver import wiring
from jaxserver.ports.config import ServerConfig
from jaxserver.ports.errors import InvalidConfig
from tests.unit.test_wiring import nobody, write_model


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

    def use(folder: Path) -> str:
        folders.append(folder)
        return "their name"

    monkeypatch.setattr(wiring, "register_kernels", use)
    plain = dataclasses.replace(config, kernels="xla")
    told, untold = (wiring.load_model(each, nobody) for each in (config, plain))
    assert (told.kernels, untold.kernels) == ("their name", "")
    assert told.made_of == f"{untold.made_of}their name"
    assert [folder.name for folder in folders] == ["kernels"]


def test_what_is_compiled_uses_the_kernels_of_its_model(
    config: ServerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = dataclasses.replace(config, kernels="xla")
    model = wiring.load_model(plain, nobody)
    used: list[str] = []
    monkeypatch.setattr(wiring, "use_kernels", used.append)
    monkeypatch.setattr(wiring, "_keep_compiled_code", lambda: None)
    for kernels in ("their name", ""):
        compiled = wiring.compile_model(model._replace(kernels=kernels), plain, nobody)
        compiled.cancel()
    assert used == ["their name", ""]
