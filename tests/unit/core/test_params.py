import dataclasses
from typing import Any

import chex
import jax
import numpy as np

from jaxserver.core.ops.fp8 import FP8
from jaxserver.core.params import ParamSpec, init_params, kept_as, leaves, param_specs
from tests.tiny import TINY_LLAMA

BIASED = dataclasses.replace(
    TINY_LLAMA, tied=False, attention_bias=True, mlp_bias=True, head_dim=6
)


def specs_of(tied: bool) -> list[ParamSpec]:
    config = TINY_LLAMA if tied else BIASED
    specs: list[ParamSpec] = jax.tree.leaves(
        param_specs(config), is_leaf=lambda leaf: isinstance(leaf, ParamSpec)
    )
    return specs


def test_every_weight_has_a_path_of_its_own_and_an_axis_for_each_dimension() -> None:
    specs = specs_of(tied=False)
    assert len({spec.path for spec in specs}) == len(specs)
    assert all(len(spec.axes) == len(spec.shape) for spec in specs)
    assert {"head", "layers.1.qkv_bias", "layers.0.mlp.down_bias"} <= {
        spec.path for spec in specs
    }


def test_what_a_model_does_not_have_is_not_described() -> None:
    paths = {spec.path for spec in specs_of(tied=True)}
    assert not [path for path in paths if "bias" in path or path == "head"]


def test_random_weights_have_the_shapes_that_are_described() -> None:
    params = init_params(BIASED, 1, "bfloat16")
    shapes = [leaf.shape for leaf in jax.tree.leaves(params)]
    assert shapes == [spec.shape for spec in specs_of(tied=False)]
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(params)} == {"bfloat16"}


def test_random_weights_are_a_function_of_their_seed_and_norms_are_ones() -> None:
    params: Any = init_params(TINY_LLAMA, 1)
    chex.assert_trees_all_equal(params, init_params(TINY_LLAMA, 1))
    other: Any = init_params(TINY_LLAMA, 2)
    assert not np.array_equal(params.embedding, other.embedding)
    assert (np.asarray(params.norm) == 1).all()
    assert 0.015 < np.asarray(params.embedding).std() < 0.025


def test_in_int8_what_is_multiplied_by_is_a_weight_scale_and_sums() -> None:
    found = {spec.path: spec for spec in leaves(kept_as(param_specs(BIASED), "int8"))}
    plain = {spec.path: spec for spec in specs_of(tied=False)}
    more = {
        f"{path}.{name}": spec
        for path, spec in plain.items()
        for name in ("scale", "sums")
        if spec.num_out
    }
    rest = found.pop("head.rest")
    assert rest.is_derived
    assert (rest.shape, rest.axes) == (plain["head"].shape, plain["head"].axes)
    assert found.keys() == plain.keys() | more.keys()
    for path, spec in plain.items():
        kept = "int8" if spec.num_out else "float32"
        assert found[path] == dataclasses.replace(spec, dtype=kept)
        assert bool(spec.num_out) == ("norm" not in path and "bias" not in path)
    for path, spec in more.items():
        out = (spec.shape[: spec.num_out], spec.axes[: spec.num_out])
        assert (found[path].shape, found[path].axes) == out
        assert found[path].is_derived
    assert kept_as(plain, "bfloat16") == plain


def test_in_fp8_what_is_multiplied_by_is_a_weight_and_scale() -> None:
    in_int8, in_fp8 = (
        {spec.path: spec for spec in leaves(kept_as(param_specs(BIASED), kept))}
        for kept in ("int8", FP8)
    )
    only_int8 = ("sums", "rest")
    assert {path for path in in_int8 if not path.endswith(only_int8)} == in_fp8.keys()
    for path, spec in in_fp8.items():
        is_int8 = in_int8[path].dtype == "int8"
        kept = dataclasses.replace(spec, dtype="int8") if is_int8 else spec
        assert (spec.dtype == FP8) == is_int8
        assert kept == in_int8[path]
