"""How parameters lie on a mesh, by their names, and by their shapes where these fail.

A rule is a regular expression over the path of a parameter, `transformer/h/0/attn/...`,
and the axis of each of its dimensions; the first rule that is found counts.
"""

import dataclasses
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias, get_args

import jax

from jaxserver.core.params import ParamSpec, is_spec, leaves
from jaxserver.core.sharding import mesh_axes
from jaxserver.ports.errors import InvalidConfig
from jaxserver.ports.model import Axes, Axis, LogicalAxis, MeshAxis

Rules: TypeAlias = Sequence[tuple[str, Axes]]

_EMBEDDINGS: Rules = (
    (r"(wpe|embed_positions|(position|token_type)_embeddings)/", (None, "embed")),
    (r"relative_attention_bias/embedding$", (None, "heads")),
    (r"embedding$", ("vocab", "embed")),
    (r"lm_head/kernel$", ("embed", "vocab")),
)
_GPT2: Rules = (  # its kernels lie [out, in]; queries, keys and values are one
    (r"(c_attn|q_attn)/kernel$", ("heads", "embed")),
    (r"attn/c_proj/kernel$", ("embed", "heads")),
    (r"crossattention/c_proj/kernel$", ("embed", "heads")),
    (r"c_fc/kernel$", ("mlp", "embed")),
    (r"mlp/c_proj/kernel$", ("embed", "mlp")),
    *_EMBEDDINGS,
)
_GPTJ: Rules = (
    (r"[qkv]_proj/kernel$", ("embed", "heads")),
    (r"out_proj/kernel$", ("heads", "embed")),
    (r"fc_in/kernel$", ("embed", "mlp")),
    (r"fc_out/kernel$", ("mlp", "embed")),
    *_EMBEDDINGS,
)
_GPT_NEO: Rules = (
    (r"[qkv]_proj/kernel$", ("embed", "heads")),
    (r"out_proj/kernel$", ("heads", "embed")),
    (r"c_fc/kernel$", ("embed", "mlp")),
    (r"c_proj/kernel$", ("mlp", "embed")),
    *_EMBEDDINGS,
)
_LLAMA: Rules = (
    (r"q_proj/kernel$", ("embed", "heads")),
    (r"[kv]_proj/kernel$", ("embed", "kv_heads")),
    (r"o_proj/kernel$", ("heads", "embed")),
    (r"(gate|up)_proj/kernel$", ("embed", "mlp")),
    (r"down_proj/kernel$", ("mlp", "embed")),
    *_EMBEDDINGS,
)
_BLOOM: Rules = (
    (r"query_key_value/kernel$", ("embed", "heads")),
    (r"self_attention/dense/kernel$", ("heads", "embed")),
    (r"dense_h_to_4h/kernel$", ("embed", "mlp")),
    (r"dense_4h_to_h/kernel$", ("mlp", "embed")),
    *_EMBEDDINGS,
)
_BART: Rules = (
    (r"[qkv]_proj/kernel$", ("embed", "heads")),
    (r"out_proj/kernel$", ("heads", "embed")),
    (r"fc1/kernel$", ("embed", "mlp")),
    (r"fc2/kernel$", ("mlp", "embed")),
    *_EMBEDDINGS,
)
_T5: Rules = (
    (r"Attention/[qkv]/kernel$", ("embed", "heads")),
    (r"Attention/o/kernel$", ("heads", "embed")),
    (r"wi(_[01])?/kernel$", ("embed", "mlp")),
    (r"wo/kernel$", ("mlp", "embed")),
    *_EMBEDDINGS,
)
_BERT: Rules = (
    (r"(query|key|value)/kernel$", ("embed", "heads")),
    (r"ttention/output/dense/kernel$", ("heads", "embed")),
    (r"intermediate/dense/kernel$", ("embed", "mlp")),
    (r"output/dense/kernel$", ("mlp", "embed")),
    *_EMBEDDINGS,
)
FAMILIES: Mapping[str, Rules] = {
    "gpt2": _GPT2,  # GPT-SW3 too
    "gptj": _GPTJ,
    "gpt_neo": _GPT_NEO,
    **dict.fromkeys(("llama", "mistral", "gemma"), _LLAMA),
    "bloom": _BLOOM,
    **dict.fromkeys(("opt", "xglm", "bart", "mbart", "pegasus", "marian"), _BART),
    **dict.fromkeys(("blenderbot", "blenderbot-small"), _BART),
    **dict.fromkeys(("t5", "mt5", "longt5"), _T5),
    **dict.fromkeys(("bert", "electra", "big_bird", "roberta"), _BERT),
    **dict.fromkeys(("xlm-roberta", "roberta-prelayernorm"), _BERT),
}
"""By the `model_type` of a configuration."""


def param_specs_of(shapes: Any, family: str) -> Any:
    """A tree of `ParamSpec` for a tree of shapes.

    Args:
        shapes: Of a model's parameters.
        family: The model's type, which may have a table.
    """
    rules = FAMILIES.get(family, ())

    def spec(path: tuple[Any, ...], leaf: Any) -> ParamSpec:
        name = "/".join(str(part.key) for part in path)
        axes = _found(name, rules)
        if axes is None or len(axes) != len(leaf.shape):
            axes = _axes_by_shape(leaf.shape)
        return ParamSpec(path=name, shape=leaf.shape, axes=axes)

    return jax.tree_util.tree_map_with_path(spec, shapes)


def _found(path: str, rules: Rules) -> Axes | None:
    return next((axes for regex, axes in rules if re.search(regex, path)), None)


def _axes_by_shape(shape: tuple[int, ...]) -> Axes:
    """The longest dimension is inside the layer, the next longest outside it.

    What has no two dimensions is a norm or a bias, and is not worth cutting.
    """
    long = [at for at, size in enumerate(shape) if size > 1]
    if len(long) < 2:
        return (None,) * len(shape)
    *_, outside, inside = sorted(long, key=lambda at: (shape[at], at))
    names: dict[int, Axis] = {inside: "mlp", outside: "embed"}
    return tuple(names.get(at) for at in range(len(shape)))


def read_rules(given: Iterable[Any]) -> Rules:
    """The user's own rules, `(regular expression, axes)` each.

    An axis is None, a meaning (`embed`, `heads`, ...), an axis of the mesh (`dp`,
    `fsdp`, `mp`) or a tuple of the latter; a `PartitionSpec` says the same.

    Raises:
        InvalidConfig: It names the rule that is none.
    """
    return tuple(_read_rule(rule) for rule in given)


def _read_rule(rule: Any) -> tuple[str, Axes]:
    try:
        regex, axes = rule
        re.compile(regex)
        axes = tuple(axes)
    except (TypeError, ValueError, re.error) as error:
        allowed = "a pair of a regular expression and its axes"
        raise _refused(f"{rule!r} ({error})", allowed) from None
    if any(axis not in _AXES for axis in axes if axis is not None):
        names = ", ".join(name for name in _AXES if isinstance(name, str))
        raise _refused(repr(rule), f"None, {names}, or a tuple of the mesh's")
    used = [name for axis in axes for name in mesh_axes(axis)]
    if len(used) > len(set(used)):
        raise _refused(repr(rule), "each axis of the mesh once")
    return regex, axes


_MESH_NAMES: tuple[MeshAxis, ...] = get_args(MeshAxis)
_AXES: tuple[Axis, ...] = (
    *get_args(LogicalAxis),
    *_MESH_NAMES,
    *(
        names
        for count in range(len(_MESH_NAMES) + 1)
        for names in itertools.permutations(_MESH_NAMES, count)
    ),
)


def with_rules(specs: Any, rules: Rules) -> Any:
    """The same parameters, those that a rule is for as it says.

    Dimensions that a rule does not reach are whole, as in a `PartitionSpec`.

    Raises:
        InvalidConfig: A rule has more axes than the parameter that it is for, or there
            is none that it is for.
    """
    paths = [spec.path for spec in leaves(specs)]
    for regex, _ in rules:
        if not any(re.search(regex, path) for path in paths):
            allowed = (
                f"one for some of the parameters, such as {paths[len(paths) // 2]}"
            )
            raise _refused(f"one for {regex!r}, which there is not", allowed)

    def place(spec: ParamSpec) -> ParamSpec:
        axes = _found(spec.path, rules)
        if axes is None:
            return spec
        rest = len(spec.shape) - len(axes)
        if rest < 0:
            got = f"{axes} for {spec.path} of shape {spec.shape}"
            raise _refused(got, f"at most {len(spec.shape)} axes")
        return dataclasses.replace(spec, axes=(*axes, *(None,) * rest))

    return jax.tree.map(place, specs, is_leaf=is_spec)


def _refused(got: str, allowed: str) -> InvalidConfig:
    return InvalidConfig("partition_rules", got, allowed)
