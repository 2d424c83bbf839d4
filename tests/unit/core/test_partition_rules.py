import jax
import numpy as np

from jaxserver.core.params import ParamSpec, leaves
from jaxserver.core.partition_rules import param_specs_of

SHAPES = {
    "wte": {"embedding": jax.ShapeDtypeStruct((64, 32), np.float32)},
    "wpe": {"embedding": jax.ShapeDtypeStruct((16, 32), np.float32)},
    "h": {
        "c_attn": {"kernel": jax.ShapeDtypeStruct((96, 32), np.float32)},
        "o_proj": {"kernel": jax.ShapeDtypeStruct((32, 32), np.float32)},
        "norm": {"scale": jax.ShapeDtypeStruct((32,), np.float32)},
    },
}


def axes_of(family: str, own: tuple[tuple[str, tuple[None, None]], ...] = ()) -> object:
    specs: list[ParamSpec] = leaves(param_specs_of(SHAPES, family, own))
    return {spec.path: spec.axes for spec in specs}


def test_parameters_lie_by_their_names_and_shapes() -> None:
    assert axes_of("any") == {
        "h/c_attn/kernel": ("embed", "mlp"),
        "h/norm/scale": (None,),
        "h/o_proj/kernel": ("mlp", "embed"),
        "wpe/embedding": (None, "embed"),
        "wte/embedding": ("vocab", "embed"),
    }


def test_a_familys_table_goes_first_and_the_users_before_it() -> None:
    by_family, by_user = axes_of("gpt2"), axes_of("gpt2", (("c_attn", (None, None)),))
    assert isinstance(by_family, dict)
    assert isinstance(by_user, dict)
    assert by_family["h/c_attn/kernel"] == ("mlp", "embed")
    assert by_user["h/c_attn/kernel"] == (None, None)
