"""How the parameters of models that are not ours lie on a mesh, by their names."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import jax

from jaxserver.core.params import ParamSpec
from jaxserver.ports.model import Axes

Rules: TypeAlias = Sequence[tuple[str, Axes]]
"""Regular expressions over parameter paths, the first one that is found counts."""

_OUT_IN: Axes = ("mlp", "embed")
_IN_OUT: Axes = ("embed", "mlp")
_BACK = (
    r"(out_proj|o_proj|o|fc2|wo|fc_out|down_proj|dense_4h_to_h|output/dense)/kernel$"
)
_BY_SHAPE: Rules = (
    (r"(position|wpe|pos_).*embedding$", (None, "embed")),
    (r"embedding$", ("vocab", "embed")),
    (r"lm_head/kernel$", ("embed", "vocab")),
    (_BACK, _OUT_IN),
    (r"kernel$", _IN_OUT),
)
"""For families without a table of their own."""

_GPT2: Rules = (  # its kernels lie [out, in]
    (r"(c_attn|q_attn|c_fc)/kernel$", _OUT_IN),
    (r"c_proj/kernel$", _IN_OUT),
)
FAMILIES: Mapping[str, Rules] = {"gpt2": _GPT2}


def param_specs_of(shapes: Any, family: str, own: Rules = ()) -> Any:
    """A tree of `ParamSpec` for a tree of shapes.

    Args:
        shapes: Of a model's parameters.
        family: The model's type, which may have a table.
        own: Rules that go before all others.
    """
    rules = (*own, *FAMILIES.get(family, ()), *_BY_SHAPE)

    def spec(path: tuple[Any, ...], leaf: Any) -> ParamSpec:
        name = "/".join(str(part.key) for part in path)
        return ParamSpec(path=name, shape=leaf.shape, axes=_axes(name, leaf, rules))

    return jax.tree_util.tree_map_with_path(spec, shapes)


def _axes(name: str, leaf: Any, rules: Rules) -> Axes:
    for pattern, axes in rules:
        if re.search(pattern, name) and len(axes) == len(leaf.shape):
            return axes
    return (None,) * len(leaf.shape)
