"""What a model's generation settings demand, as `generate` treats them."""

from collections.abc import Mapping
from typing import Any

from jaxserver.ports.errors import UnsupportedModel
from jaxserver.ports.model import AnswerRules

_REFUSED: Mapping[str, tuple[Any, ...]] = {"forced_decoder_ids": (None, [])}


def answer_rules(generation: Any) -> AnswerRules:
    """Reads a `GenerationConfig`.

    Raises:
        UnsupportedModel: It demands something that is not known here.
    """
    for name, neutral in _REFUSED.items():
        value = getattr(generation, name, None)
        if value not in neutral:
            raise UnsupportedModel(f"{name} {value!r}", f"{name} left out")
    min_len = generation.min_length or 0
    return AnswerRules(
        first=generation.forced_bos_token_id,
        last=_one(generation.forced_eos_token_id),
        min_len=min_len if generation.eos_token_id is not None else 0,
        suppressed=tuple(generation.suppress_tokens or ()),
        suppressed_first=tuple(generation.begin_suppress_tokens or ()),
        no_repeat_ngram=generation.no_repeat_ngram_size or 0,
    )


def decoder_prompt(model: Any) -> tuple[int, ...]:
    """What a decoder reads before its answer.

    Raises:
        UnsupportedModel: Neither the model nor its settings say it.
    """
    generation, config = model.generation_config, model.config
    parts = [generation, getattr(config, "decoder", None), config]
    for name in ("decoder_start_token_id", "bos_token_id"):
        for part in parts:
            token = getattr(part, name, None)
            if token is not None:
                return (int(token),)
    raise UnsupportedModel(
        f"{type(model).__name__} without a decoder_start_token_id",
        "one in its generation_config.json or config.json",
    )


def end_ids(generation: Any) -> frozenset[int]:
    """The tokens that end an answer."""
    ends = generation.eos_token_id
    return frozenset([ends] if isinstance(ends, int) else ends or ())


def _one(ids: Any) -> int | None:
    """`generate` forces one token at the end."""
    first: int | None = ids[0] if isinstance(ids, list) else ids
    return first
