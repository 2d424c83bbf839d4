from typing import Any

import jax
import numpy as np
import pytest
import transformers
from jax.sharding import PartitionSpec
from transformers.models.auto import modeling_flax_auto as auto

from jaxserver.adapters.flax_models.mends import mend
from jaxserver.core.params import ParamSpec, leaves, param_specs
from jaxserver.core.partition_rules import (
    param_specs_of,
    read_rules,
    with_rules,
)
from jaxserver.ports.errors import InvalidConfig
from jaxserver.ports.model import Axes
from tests.tiny import TINY_LLAMA
from tests.tiny_flax import CAUSAL, SEQ_TO_SEQ

SHAPES = {
    "wte": {"embedding": jax.ShapeDtypeStruct((64, 32), np.float32)},
    "h": {
        "up": {"kernel": jax.ShapeDtypeStruct((32, 48), np.float32)},
        "square": {"kernel": jax.ShapeDtypeStruct((32, 32), np.float32)},
        "conv": {"kernel": jax.ShapeDtypeStruct((3, 48, 32), np.float32)},
        "norm": {"scale": jax.ShapeDtypeStruct((32,), np.float32)},
        "bias": jax.ShapeDtypeStruct((1, 64), np.float32),
        "factor": jax.ShapeDtypeStruct((), np.float32),
    },
}
ONE_OF_EACH_TABLE = ["gpt2", "gptj", "gpt_neo", "llama", "bloom", "t5", "bert", "opt"]
SIZES = {
    "embed": {32, 16},
    "mlp": {48, 128},
    "vocab": {64},
    "heads": {4, 32, 96},
    "kv_heads": {16},
}
"""What the tiny models' dimensions can be; an embedding of OPT and Electra has 16."""


def axes_of(specs: Any) -> dict[str, Axes]:
    return {spec.path: spec.axes for spec in leaves(specs)}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One class for each table, or with `--every-class` every class."""
    if "family" in metafunc.fixturenames:
        is_every = metafunc.config.getoption("--every-class")
        every = [*CAUSAL, *(kind for kind in SEQ_TO_SEQ if kind not in CAUSAL)]
        metafunc.parametrize("family", every if is_every else ONE_OF_EACH_TABLE)


def specs_of(family: str) -> list[ParamSpec]:
    """Of the tiny model of a class."""
    mend()
    names = {
        **auto.FLAX_MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
        **auto.FLAX_MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    }
    settings = {**SEQ_TO_SEQ, **CAUSAL}[family]
    kind = "gpt2" if family == "gpt-sw3" else family
    config = transformers.AutoConfig.for_model(kind, **settings)
    model = getattr(transformers, names[family])(config, _do_init=False)
    return leaves(param_specs_of(model.params_shape_tree, config.model_type))


@pytest.mark.filterwarnings("ignore:.*is deprecated")
def test_a_familys_table_says_what_each_dimension_of_its_matrices_is(
    family: str,
) -> None:
    is_named = False
    for spec in specs_of(family):
        if len(spec.shape) < 2 or 1 in spec.shape:
            assert set(spec.axes) <= {None}, spec
            continue
        assert any(axis is not None for axis in spec.axes), spec
        for axis, size in zip(spec.axes, spec.shape, strict=True):
            if "project" not in spec.path and "dense/" not in spec.path[-13:]:
                assert size in SIZES.get(str(axis), {size}), spec
        is_named |= "heads" in spec.axes
    assert is_named


def test_what_has_no_table_is_cut_by_its_shape() -> None:
    assert axes_of(param_specs_of(SHAPES, "a model never seen")) == {
        "h/bias": (None, None),
        "h/conv/kernel": (None, "mlp", "embed"),
        "h/factor": (),
        "h/norm/scale": (None,),
        "h/square/kernel": ("embed", "mlp"),
        "h/up/kernel": ("embed", "mlp"),
        "wte/embedding": ("mlp", "embed"),
    }


def test_the_users_rules_go_before_all_others_and_the_first_found_counts() -> None:
    rules = read_rules(
        [
            ("square/kernel", ("fsdp", "mp")),
            ("kernel", PartitionSpec(None, ("fsdp", "mp"))),
            ("wte", ["vocab"]),
            ("square", ("mp",)),
            ("factor|norm", ()),
        ]
    )
    assert axes_of(with_rules(param_specs_of(SHAPES, "gpt2"), rules)) == {
        "h/bias": (None, None),
        "h/conv/kernel": (None, ("fsdp", "mp"), None),
        "h/factor": (),
        "h/norm/scale": (None,),
        "h/square/kernel": ("fsdp", "mp"),
        "h/up/kernel": (None, ("fsdp", "mp")),
        "wte/embedding": ("vocab", None),
    }


def test_the_users_rules_are_for_our_own_models_too() -> None:
    rules = read_rules([(r"mlp\.down$", (None, "mp"))])
    found = axes_of(with_rules(param_specs(TINY_LLAMA), rules))
    assert found["layers.1.mlp.down"] == (None, "mp")
    assert found["layers.1.mlp.gate_up"] == (None, "mlp", "embed")


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        (("(", ("mp",)), "unterminated"),
        (("kernel", ("tp",)), "tp"),
        (("kernel", ("mp", "heads")), "each axis of the mesh once"),
        (("kernel", ("fsdp", ("fsdp", "mp"))), "each axis of the mesh once"),
        (("kernel", "mp"), "kernel"),
        (("kernel", 3), "kernel"),
        (("kernel", (["mp"],)), "kernel"),
        ("kernel", "kernel"),
        (("kernel", ("mp",), "more"), "more"),
    ],
)
def test_a_rule_that_is_none_is_refused_by_name(rule: Any, says: str) -> None:
    with pytest.raises(InvalidConfig, match="partition_rules") as caught:
        read_rules([("fine", ("mp",)), rule])
    assert says in str(caught.value)
    assert repr(rule) in caught.value.got


def test_a_rule_with_more_axes_than_its_parameter_is_refused_by_name() -> None:
    rules = read_rules([("norm", ("fsdp", "mp"))])
    with pytest.raises(InvalidConfig, match=r"h/norm/scale of shape \(32,\)"):
        with_rules(param_specs_of(SHAPES, "gpt2"), rules)


def test_a_rule_that_is_for_nothing_is_refused_by_name() -> None:
    rules = read_rules([("norm", ("fsdp",)), ("q_proj/kernel$", ("mp",))])
    with pytest.raises(InvalidConfig, match=r"q_proj/kernel\$.*such as h/"):
        with_rules(param_specs_of(SHAPES, "gpt2"), rules)
