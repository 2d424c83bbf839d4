"""Writes tests/reference/flax_variants: small random models and PyTorch's logits.

One file for each variant in `tests/flax_variants.py`: the parameters as transformers
converts them for its Flax class, some tokens, and their logits by its PyTorch class.
Needs `torch` (2.13.0 was used) and `transformers<5` (4.57.6 was used):

    python -m tests.reference.make_flax_variants [MODEL TYPE ...]
"""

import copy
import json
import sys
import types
from pathlib import Path
from typing import Any

import flax
import numpy as np
import torch
from safetensors.numpy import save_file
from transformers import AutoModelForCausalLM
from transformers.modeling_flax_pytorch_utils import (
    convert_pytorch_state_dict_to_flax,
)
from transformers.modeling_utils import no_init_weights

from tests.flax_variants import KINDS, TIME, VARIANTS
from tests.tiny_flax import config_of, flax_class

FOLDER = Path(__file__).parent / "flax_variants"


def random_weights(model: Any) -> None:
    """Of every kind, biases and norms included, large enough to bite."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            spread = torch.randn_like(weight) * 0.25
            is_scale = weight.ndim == 1 and name.endswith("weight")
            weight.copy_((1 + spread if is_scale else spread).half().float())


def converted(config: Any, weights: dict[str, Any]) -> dict[str, np.ndarray]:
    """Flat parameters of the Flax class, which fills in biases and scales by itself."""
    model = flax_class(config.model_type)(copy.deepcopy(config), _do_init=False)
    shapes = model.params_shape_tree
    target = types.SimpleNamespace(
        base_model_prefix=model.base_model_prefix, params=shapes
    )
    flatten = flax.traverse_util.flatten_dict
    found = flatten(convert_pytorch_state_dict_to_flax(weights, target))
    params = {}
    for path, shape in flatten(shapes).items():
        leaf = found.get(path)
        if leaf is None:
            leaf = np.full(shape.shape, {"bias": 0.0, "scale": 1.0}[path[-1]])
        assert leaf.shape == shape.shape, path
        params["/".join(path)] = np.asarray(leaf, np.float16)
    return params


def write(kind: str, variant: str) -> None:
    settings = KINDS[kind].variants[variant]
    config = config_of(kind, **settings)
    torch.manual_seed(30)
    with no_init_weights():  # OPT's own fails where norms have no weights
        model = AutoModelForCausalLM.from_config(
            copy.deepcopy(config), attn_implementation="eager"
        ).eval()
    model.tie_weights()
    random_weights(model)
    # No token stands for padding, which Roberta gives a position of its own.
    tokens = torch.randint(6, config.vocab_size, (1, TIME))
    with torch.no_grad():
        logits = model(tokens, use_cache=False).logits[0]
    arrays = converted(config, model.state_dict())
    arrays["tokens"] = tokens[0].numpy().astype(np.int32)
    arrays["logits"] = logits.numpy()
    file = FOLDER / f"{kind}_{variant}.safetensors"
    save_file(arrays, file, {"settings": json.dumps(settings)})
    file.chmod(0o644)


def main() -> None:
    wanted = sys.argv[1:] or KINDS.keys()
    FOLDER.mkdir(exist_ok=True)
    for kind, variant in VARIANTS:
        if kind in wanted:
            write(kind, variant)


if __name__ == "__main__":
    main()
