"""Flax models with random weights, made without running them, and their folders."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxserver.adapters.flax_models.mends import mend
from tests.tiny_flax import CAUSAL, SEQ_TO_SEQ, TinyFlax

LAYOUTS: dict[str, dict[str, Any]] = {
    "whole": {},
    "shards": {"max_shard_size": "20KB"},
    "safetensors": {"safe_serialization": True},
}
"""How `save_pretrained` writes each of them."""


def random_flax(kind: str, **settings: Any) -> TinyFlax:
    """A causal model of that type, or else one with an encoder."""
    import transformers  # noqa: PLC0415  # takes a second
    from transformers.models.auto import modeling_flax_auto as auto  # noqa: PLC0415

    mend()
    names = dict(auto.FLAX_MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES)
    names |= auto.FLAX_MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    config = transformers.AutoConfig.for_model(
        kind, **{**{**SEQ_TO_SEQ, **CAUSAL}[kind], **settings}
    )
    model = getattr(transformers, names[kind])(config, _do_init=False)
    rng = np.random.default_rng(3)
    params = jax.tree.map(
        lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32) * 0.2,
        model.params_shape_tree,
    )
    return TinyFlax(model, params)


def save(tiny: TinyFlax, folder: Path, layout: str = "whole") -> Path:
    """Writes settings and weights; the tokenizer is another's to write."""
    tiny.model.save_pretrained(folder, params=tiny.params, **LAYOUTS[layout])
    return folder


def flat(params: Any, separator: str = "/") -> dict[str, np.ndarray]:
    """Every parameter by its path."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {separator.join(k.key for k in path): np.asarray(x) for path, x in leaves}
