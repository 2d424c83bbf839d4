"""Settings of a checkpoint that its Flax class treats otherwise than PyTorch does.

Read by comparing each `modeling_flax_*.py` of transformers 4.57 with its PyTorch twin.
A setting is mended where that takes a change of the configuration alone, else refused
by name, so that no model is served wrongly in silence.
"""

import copy
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jaxserver.ports.errors import UnsupportedModel


class Ignored(NamedTuple):
    """A setting that the class does not read: only these values are what it does."""

    name: str
    allowed: tuple[Any, ...]


_ROTARY = (
    Ignored("rope_theta", (10_000.0,)),
    Ignored("rope_scaling", (None,)),
    Ignored("partial_rotary_factor", (1.0,)),
)
_RELATIVE = (Ignored("position_embedding_type", ("absolute",)),)
IGNORED: Mapping[str, tuple[Ignored, ...]] = {
    "llama": (*_ROTARY, Ignored("mlp_bias", (False,))),
    "mistral": _ROTARY,
    "gemma": (*_ROTARY,),
    "gpt2": (
        Ignored("scale_attn_weights", (True,)),
        Ignored("scale_attn_by_inverse_layer_idx", (False,)),
    ),
    "gptj": (Ignored("tie_word_embeddings", (False,)),),
    "bert": _RELATIVE,
    "roberta": _RELATIVE,
    "xlm-roberta": _RELATIVE,
    "roberta-prelayernorm": _RELATIVE,
    "electra": _RELATIVE,
    "marian": (Ignored("share_encoder_decoder_embeddings", (True,)),),
    "t5": (Ignored("tie_encoder_decoder", (False,)),),
    "mt5": (Ignored("tie_encoder_decoder", (False,)),),
    "longt5": (Ignored("tie_encoder_decoder", (False,)),),
    "encoder-decoder": (Ignored("tie_encoder_decoder", (False,)),),
}
_WHOLE_ROW = 2**30
_OWN_HEAD_DIM = frozenset({"llama", "mistral"})
_CAUSAL_BY_SETTING = frozenset(
    {"bert", "roberta", "xlm-roberta", "roberta-prelayernorm", "electra", "big_bird"}
)


def served_config(config: Any, is_causal: bool) -> Any:
    """A copy of the configuration with which the class does what PyTorch does.

    Args:
        config: Of the checkpoint; it stays as it is.
        is_causal: The model continues texts, and has no encoder.

    Raises:
        UnsupportedModel: A setting is not read by the class and cannot be mended.
    """
    config = copy.deepcopy(config)
    _refuse_ignored(config)
    if is_causal and config.model_type in _CAUSAL_BY_SETTING:
        config.is_decoder = True
    mend = _MENDS.get(config.model_type)
    if mend is not None:
        mend(config)
    return config


def _refuse_ignored(config: Any) -> None:
    kind = config.model_type
    for name, allowed in IGNORED.get(kind, ()):
        value = getattr(config, name, allowed[0])
        if value not in allowed:
            raise UnsupportedModel(
                f"{name} {value!r}, which the Flax class of {kind} does not read",
                f"{name} {' or '.join(map(repr, allowed))} there",
            )
    if kind in _OWN_HEAD_DIM:
        ours = config.hidden_size // config.num_attention_heads
        if (getattr(config, "head_dim", None) or ours) != ours:
            raise UnsupportedModel(
                f"head_dim {config.head_dim}, which the Flax class of {kind} does not "
                "read",
                f"head_dim {ours} there",
            )


def _mend_mistral(config: Any) -> None:
    """The class sees one key more than the window, and itself alone without one."""
    window = config.sliding_window
    config.sliding_window = _WHOLE_ROW if window is None else window - 1


def _mend_gemma(config: Any) -> None:
    """The class has its own name for the activation, which PyTorch does not read."""
    config.hidden_activation = config.hidden_act


def _mend_big_bird(config: Any) -> None:
    """Sparse attention is neither causal nor cached; full attention has its weights."""
    config.attention_type = "original_full"


_MENDS: Mapping[str, Callable[[Any], None]] = {
    "mistral": _mend_mistral,
    "gemma": _mend_gemma,
    "big_bird": _mend_big_bird,
}
