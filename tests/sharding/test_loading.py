"""A configured mesh decides how a model is loaded, or is refused."""

import logging
from pathlib import Path

import jax
import pytest

from jaxserver import wiring
from jaxserver.ports.config import ServerConfig
from jaxserver.ports.errors import InvalidConfig
from jaxserver.ports.model import PartitionRules
from tests.contract.tiny_tokenizers import single_digits
from tests.flax_answers import tokenizer
from tests.sharding.models import unmade
from tests.unit.tiny_folder import nobody, write_model

pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated", "ignore:.*one_hot")
Shape = tuple[int, int, int]
VOCAB = single_digits().get_vocab_size()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("tiny"))


def configured(
    folder: Path, shape: Shape = (2, 2, 2), slots: int | None = None
) -> ServerConfig:
    return ServerConfig(
        model=str(folder), max_length=48, mesh_axes_shape=shape, slots=slots
    )


def test_slots_that_the_mesh_does_not_divide_are_refused(folder: Path) -> None:
    with pytest.raises(InvalidConfig, match="slots") as caught:
        wiring.plan(configured(folder, slots=6))
    assert caught.value.got == "6 on a mesh whose dp times fsdp is 4"


@pytest.mark.parametrize(
    ("shape", "slots"),
    [((2, 2, 2), 8), ((1, 3, 2), 9), ((1, 5, 1), 10), ((1, 1, 8), 8)],
)
def test_the_slots_that_nobody_chose_are_divided_by_the_mesh(
    folder: Path, shape: Shape, slots: int
) -> None:
    assert wiring.plan(configured(folder, shape)).slots == slots


@pytest.mark.parametrize("shape", [(3, -1, 1), (2, 8, 1)])
def test_a_mesh_that_does_not_fit_the_devices_is_refused(
    folder: Path, shape: Shape
) -> None:
    with pytest.raises(InvalidConfig, match="mesh_axes_shape") as caught:
        wiring.plan(configured(folder, shape))
    assert caught.value.got == f"{shape} for 8 devices"


def test_sizes_that_the_mesh_does_not_divide_are_said_in_one_line(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "jaxserver"):
        model = wiring.load_model(configured(folder, (1, 1, 8)), nobody)
    assert len(caplog.messages) == 1
    for part in (f"embedding ({VOCAB} over 8)", "layers.*.qkv (2 over 8)"):
        assert part in caplog.messages[0]
    assert "norm" not in caplog.messages[0]
    layer = model.params.layers[0]
    assert layer.qkv.values.sharding.is_fully_replicated
    assert not layer.mlp.down.values.sharding.is_fully_replicated


def test_a_mesh_that_divides_everything_is_not_worth_a_line(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "jaxserver"):
        wiring.load_model(configured(folder, (1, 8, 1)), nobody)
    assert caplog.messages == []


RULES: PartitionRules = [
    ("down|mlp/c_proj/kernel", jax.P(None, "mp")),
    ("embedding", ()),
]


def test_the_users_rules_say_how_a_checkpoint_lies(folder: Path) -> None:
    model = wiring.load_model(configured(folder), nobody, RULES)
    assert model.params.embedding.values.sharding.is_fully_replicated
    down = model.params.layers[0].mlp.down.values
    assert down.sharding.spec == jax.P(None, ("mp",))
    assert "embedding" in model.plan.replicated


def test_the_users_rules_say_how_a_model_in_memory_lies(folder: Path) -> None:
    tiny = unmade("gpt2", vocab_size=VOCAB)
    config = configured(folder)
    model = wiring.take_model(tiny.model, tiny.params, tokenizer(), config, RULES)
    block = model.params["transformer"]["h"]["0"]
    assert model.params["transformer"]["wte"]["embedding"].is_fully_replicated
    assert block["mlp"]["c_proj"]["kernel"].sharding.spec == jax.P(None, ("mp",))
    assert block["mlp"]["c_fc"]["kernel"].sharding.spec == jax.P(("mp",), ("fsdp",))


def test_a_rule_that_is_none_is_refused_before_anything_is_read() -> None:
    config = ServerConfig(model="/nowhere/at/all")
    with pytest.raises(InvalidConfig, match="partition_rules"):
        wiring.load_model(config, nobody, [("(", ())])
