"""Settings of a checkpoint that its Flax class treats otherwise than PyTorch does.

Found by comparing each `modeling_flax_*.py` of transformers 4.57 with its PyTorch twin,
and held by `tests/flax_variants.py`, where every setting of every causal class is moved
off its default. A setting is mended where that takes a change of the configuration, in
`mends.py` where it takes a small one of the class, else refused by name, so that no
model is served wrongly in silence.
"""

import copy
import logging
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jaxserver.ports.errors import UnsupportedModel

LOGGER = logging.getLogger("jaxserver")


class Ignored(NamedTuple):
    """A setting that the class does not read: only these values are what it does."""

    name: str
    allowed: tuple[Any, ...]


EVERYWHERE = (Ignored("pruned_heads", ({},)),)
_ROTARY = (Ignored("rope_scaling", (None,)), Ignored("partial_rotary_factor", (1.0,)))
_RELATIVE = (Ignored("position_embedding_type", ("absolute",)),)
_TWO_WEIGHTS = (Ignored("tie_encoder_decoder", (False,)),)
IGNORED: Mapping[str, tuple[Ignored, ...]] = {
    "llama": (*_ROTARY, Ignored("mlp_bias", (False,))),
    "mistral": _ROTARY,
    "gemma": _ROTARY,
    "gpt2": (
        Ignored("scale_attn_weights", (True,)),
        Ignored("scale_attn_by_inverse_layer_idx", (False,)),
    ),
    # PyTorch then leaves out biases.
    "bloom": (Ignored("slow_but_exact", (False,)),),
    # It drops the bias of a tied head.
    "gptj": (Ignored("tie_word_embeddings", (False,)),),
    # PyTorch blanks the position in the padding token's row, the class row 1.
    "xglm": (
        Ignored("pad_token_id", (1, 0, None)),
        Ignored("add_cross_attention", (False,)),
    ),
    # Full attention, the only one that can be served, has biases.
    "big_bird": (Ignored("use_bias", (True,)),),
    "bert": _RELATIVE,
    "roberta": _RELATIVE,
    "xlm-roberta": _RELATIVE,
    "roberta-prelayernorm": _RELATIVE,
    # PyTorch's head has this activation whatever the setting says.
    "electra": (*_RELATIVE, Ignored("hidden_act", ("gelu",))),
    "marian": (Ignored("share_encoder_decoder_embeddings", (True,)),),
    "t5": _TWO_WEIGHTS,
    "mt5": _TWO_WEIGHTS,
    "longt5": _TWO_WEIGHTS,
    "encoder-decoder": _TWO_WEIGHTS,
}
_ACTIVATIONS = ("activation_function", "hidden_act", "dense_act_fn")
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
    for part in (config, *parts_of(config)):
        _refuse_ignored(part)
        _refuse_activations(part)
    if is_causal and config.model_type in _CAUSAL_BY_SETTING:
        config.is_decoder = True
    mend = _MENDS.get(config.model_type)
    if mend is not None:
        mend(config)
    return config


def most_tokens(config: Any) -> int | None:
    """How long rows may be until PyTorch would run them in another way.

    BigBird's attention is sparse from the length on at which its blocks of a query, the
    first, the last, the neighbours and the random ones, are not all there are.
    """
    if getattr(config, "attention_type", None) != "block_sparse":
        return None
    blocks: int = 5 + 2 * config.num_random_blocks
    return blocks * int(config.block_size)


def parts_of(config: Any) -> list[Any]:
    """The encoder's and the decoder's, where a model is made of two others."""
    parts = [getattr(config, name, None) for name in ("encoder", "decoder")]
    return [part for part in parts if hasattr(part, "model_type")]


def _refuse_ignored(config: Any) -> None:
    kind = config.model_type
    for name, allowed in (*EVERYWHERE, *IGNORED.get(kind, ())):
        _check(config, name, allowed)
    if kind in _OWN_HEAD_DIM:
        ours = config.hidden_size // config.num_attention_heads
        _check(config, "head_dim", (ours, None))


def _check(config: Any, name: str, allowed: tuple[Any, ...]) -> None:
    value = getattr(config, name, allowed[0])
    if value not in allowed:
        kind = config.model_type
        raise UnsupportedModel(
            f"{name} {value!r}, which the Flax class of {kind} does not apply",
            f"{name} {' or '.join(map(repr, allowed))} there",
        )


def _refuse_activations(config: Any) -> None:
    """The Flax files know fewer of them than PyTorch; a user's own may know others."""
    from transformers.modeling_flax_utils import ACT2FN  # noqa: PLC0415  # slow
    from transformers.models.auto import CONFIG_MAPPING  # noqa: PLC0415

    names = _ACTIVATIONS if config.model_type in CONFIG_MAPPING else ()
    for name in names:
        if getattr(config, name, None) is not None:
            _check(config, name, tuple(ACT2FN))


def _mend_mistral(config: Any) -> None:
    """The class sees one key more than the window, and itself alone without one."""
    window = config.sliding_window
    config.sliding_window = _WHOLE_ROW if window is None else window - 1


def _mend_gemma(config: Any) -> None:
    """The class has its own name for the activation, which PyTorch does not read."""
    config.hidden_activation = config.hidden_act


def _mend_big_bird(config: Any) -> None:
    """Sparse attention is neither causal nor cached; on short rows it is full."""
    if config.attention_type != "original_full":
        LOGGER.info(
            "%s attention is served as original_full, as it is for up to %d tokens",
            config.attention_type,
            most_tokens(config),
        )
    config.attention_type = "original_full"


_MENDS: Mapping[str, Callable[[Any], None]] = {
    "mistral": _mend_mistral,
    "gemma": _mend_gemma,
    "big_bird": _mend_big_bird,
}
