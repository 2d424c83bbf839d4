"""Every tensor of a folder finds its parameter, in whichever layout it was saved."""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxserver.adapters.checkpoints.locate import open_checkpoint
from jaxserver.adapters.flax_models.loading import empty_model
from jaxserver.adapters.flax_models.settings import served_config
from jaxserver.adapters.flax_models.weights import flax_weights, params_digest
from jaxserver.ports.errors import BrokenCheckpoint
from jaxserver.ports.tensors import Checkpoint
from tests import flax_folders
from tests.flax_folders import LAYOUTS, flat, random_flax, save

pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated", "ignore:.*one_hot")
REFERENCE = Path(flax_folders.__file__).parent / "reference" / "torch_folders"


class Tensors:
    """A `TensorSource` over a mapping."""

    def __init__(self, tensors: Mapping[str, np.ndarray]) -> None:
        self.tensors = dict(tensors)

    def names(self) -> Iterable[str]:
        return self.tensors

    def shape(self, name: str) -> tuple[int, ...]:
        return self.tensors[name].shape

    def read(self, name: str) -> np.ndarray:
        return self.tensors[name]


def loaded(checkpoint: Checkpoint, model: Any) -> dict[str, np.ndarray]:
    tensors = flax_weights(checkpoint, model).tensors
    found = {name: np.asarray(tensors.read(name)) for name in tensors.names()}
    assert {name: tensors.shape(name) for name in found} == {
        name: values.shape for name, values in found.items()
    }
    return found


def nested(params: Mapping[str, np.ndarray]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, values in params.items():
        *stem, last = name.split("/")
        here = tree
        for part in stem:
            here = here.setdefault(part, {})
        here[last] = values
    return tree


@pytest.mark.parametrize("kind", ["gpt2", "opt", "t5"])
def test_what_a_flax_class_saves_is_what_it_was(kind: str, tmp_path: Path) -> None:
    tiny = random_flax(kind)
    for layout in LAYOUTS:
        checkpoint = open_checkpoint(save(tiny, tmp_path / layout, layout))
        model = empty_model(checkpoint, "float32")
        assert type(model) is type(tiny.model)
        chex.assert_trees_all_equal(loaded(checkpoint, model), flat(tiny.params))


@pytest.mark.parametrize("name", sorted(path.name for path in REFERENCE.iterdir()))
def test_what_pytorch_saves_gives_pytorchs_logits(name: str) -> None:
    checkpoint = open_checkpoint(REFERENCE / name)
    model = empty_model(checkpoint, "float32")
    config = served_config(model.config, not model.config.is_encoder_decoder)
    served = type(model)(config, _do_init=False)
    answer = load_file(REFERENCE / name / "answer.safetensors")
    expected = answer.pop("logits")
    inputs = {key: jnp.asarray(value) for key, value in answer.items()}
    params = nested(loaded(checkpoint, model))
    run = jax.jit(lambda params, inputs: served(**inputs, params=params).logits[0])
    found = run(params, inputs)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def gpt2() -> tuple[Any, Checkpoint]:
    tiny = random_flax("gpt2")
    return tiny.model, checkpoint_of(flat(tiny.params, "."))


def checkpoint_of(
    tensors: Mapping[str, np.ndarray], layout: str = "flax"
) -> Checkpoint:
    source = Tensors(tensors)
    return Checkpoint(path="here", layout=layout, config={}, tensors=source)


def changed(checkpoint: Checkpoint, **tensors: np.ndarray | None) -> Checkpoint:
    """With other tensors; two underscores stand for a dot."""
    names = checkpoint.tensors.names()
    new: dict[str, Any] = {name: checkpoint.tensors.read(name) for name in names}
    new |= {name.replace("__", "."): values for name, values in tensors.items()}
    kept = {name: values for name, values in new.items() if values is not None}
    return dataclasses.replace(checkpoint, tensors=Tensors(kept))


def test_a_missing_a_surplus_and_a_misshapen_tensor_are_named() -> None:
    model, checkpoint = gpt2()
    values = np.zeros((3, 5), np.float32)
    cases: list[tuple[dict[str, np.ndarray | None], str]] = [
        ({"transformer__wpe__embedding": None}, "wpe.embedding: expected it among the"),
        ({"transformer__more": values}, "more: expected a parameter of FlaxGPT2LMHead"),
        ({"transformer__wpe__embedding": values}, r"shape \(64, 32\), found \(3, 5\)"),
    ]
    for change, message in cases:
        with pytest.raises(BrokenCheckpoint, match=message) as caught:
            flax_weights(changed(checkpoint, **change), model)
        (name,) = change
        assert caught.value.tensor == name.replace("__", ".")


def test_a_misshapen_tensor_of_pytorchs_is_named_as_it_is_there() -> None:
    checkpoint = open_checkpoint(REFERENCE / "gpt2_sharded")
    model = empty_model(checkpoint, "float32")
    name = "transformer.h.0.attn.c_attn.weight"
    wrong = {name.replace(".", "__"): np.zeros((5, 3), np.float32)}
    with pytest.raises(
        BrokenCheckpoint, match=r"\(48, 16\) in Flax's .* \(3, 5\)"
    ) as e:
        flax_weights(changed(checkpoint, **wrong), model)
    assert e.value.tensor == name


def test_what_pytorch_writes_besides_its_parameters_is_passed_over() -> None:
    checkpoint = open_checkpoint(REFERENCE / "gpt2_sharded")
    model = empty_model(checkpoint, "float32")
    more = {
        "transformer__h__0__attn__bias": np.ones((1, 1, 32, 32), np.bool_),
        "transformer__h__0__attn__masked_bias": np.zeros((), np.float32),
        "lm_head__weight": np.zeros((64, 16), np.float32),
    }
    found = loaded(changed(checkpoint, **more), model)
    chex.assert_trees_all_equal(found, loaded(checkpoint, model))


def test_names_may_lack_that_of_the_model_below_the_head() -> None:
    model, checkpoint = gpt2()
    bare = {
        name.removeprefix("transformer."): np.asarray(checkpoint.tensors.read(name))
        for name in checkpoint.tensors.names()
    }
    chex.assert_trees_all_equal(
        loaded(checkpoint_of(bare), model), loaded(checkpoint, model)
    )


@pytest.fixture(scope="module")
def tied() -> tuple[Any, Checkpoint]:
    """A class with a head of its own, and settings that tie it."""
    tiny = random_flax("mistral", tie_word_embeddings=True)
    return tiny.model, checkpoint_of(flat(tiny.params, "."))


def test_a_tied_head_is_the_embedding_where_the_class_has_its_own(
    tied: tuple[Any, Checkpoint],
) -> None:
    model, checkpoint = tied
    embedding = np.asarray(checkpoint.tensors.read("model.embed_tokens.embedding"))
    same = {"lm_head__kernel": np.ascontiguousarray(embedding.T)}
    for head in ({"lm_head__kernel": None}, same):
        found = loaded(changed(checkpoint, **head), model)
        np.testing.assert_array_equal(found["lm_head/kernel"], embedding.T)


def test_another_head_in_a_flax_file_contradicts_its_settings(
    tied: tuple[Any, Checkpoint],
) -> None:
    model, checkpoint = tied
    weights = flax_weights(checkpoint, model)
    with pytest.raises(BrokenCheckpoint, match="as tie_word_embeddings says") as caught:
        weights.tensors.read("lm_head/kernel")
    assert caught.value.tensor == "lm_head.kernel"


def test_each_parameter_is_read_once_and_only_when_it_is_asked_for() -> None:
    model, checkpoint = gpt2()
    reads: list[str] = []

    class Counted(Tensors):
        def read(self, name: str) -> np.ndarray:
            reads.append(name)
            return super().read(name)

    names = checkpoint.tensors.names()
    source = Counted({n: np.asarray(checkpoint.tensors.read(n)) for n in names})
    weights = flax_weights(dataclasses.replace(checkpoint, tensors=source), model)
    assert reads == []
    for name in weights.tensors.names():
        weights.tensors.read(name)
    assert sorted(reads) == sorted(source.tensors)


PARAMS: dict[str, Any] = {
    "b": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3)},
    "a": {"scale": np.asarray(2, np.float16), "bias": np.ones(2, jnp.bfloat16)},
}


def with_values(part: str, name: str, values: Any) -> dict[str, Any]:
    return {**PARAMS, part: {**PARAMS[part], name: values}}


def test_the_digest_of_parameters_is_that_of_their_values_wherever_they_are() -> None:
    on_device = jax.tree.map(jnp.asarray, PARAMS)
    turned = with_values("b", "kernel", np.asfortranarray(PARAMS["b"]["kernel"]))
    in_order = dict(sorted(PARAMS.items()))
    digests = {params_digest(each) for each in (PARAMS, on_device, turned, in_order)}
    assert len(digests) == 1


@pytest.mark.parametrize(
    "other",
    [
        with_values("b", "kernel", np.arange(6, dtype=np.float32).reshape(3, 2)),
        with_values("b", "kernel", np.arange(6, dtype=np.int32).reshape(2, 3)),
        with_values("b", "kernel", np.nextafter(PARAMS["b"]["kernel"], np.float32(9))),
        {"b": PARAMS["b"], "c": PARAMS["a"]},
    ],
    ids=["shape", "type", "bits", "path"],
)
def test_any_other_parameters_have_another_digest(other: Any) -> None:
    assert params_digest(other) != params_digest(PARAMS)
