"""One tiny random model for every class of transformers' two text mappings."""

from typing import Any, NamedTuple

import jax
import numpy as np

from jaxserver.adapters.flax_models.mends import mend

VOCAB = 64
_SIZES = {"vocab_size": VOCAB, "num_hidden_layers": 2, "hidden_size": 32}
_BERT = {
    **_SIZES,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 70,
    "type_vocab_size": 2,
    "is_decoder": True,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GPT = {
    "vocab_size": VOCAB,
    "n_positions": 64,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_LLAMA = {
    **_SIZES,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_BART = {
    "vocab_size": VOCAB,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": 2,
}
_T5 = {
    "vocab_size": VOCAB,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 4,
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
    "eos_token_id": 1,
}
_NEO = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_layers": 2,
    "num_heads": 4,
    "attention_types": [[["global", "local"], 1]],
    "window_size": 5,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_OPT = {
    **_SIZES,
    "ffn_dim": 48,
    "max_position_embeddings": 64,
    "num_attention_heads": 4,
    "word_embed_proj_dim": 16,
    "bos_token_id": 2,
    "eos_token_id": 2,
}
_XGLM = {
    "vocab_size": VOCAB,
    "d_model": 32,
    "ffn_dim": 48,
    "num_layers": 2,
    "attention_heads": 4,
    "max_position_embeddings": 64,
    "eos_token_id": 2,
}
_BLOOM = {"vocab_size": VOCAB, "hidden_size": 32, "n_layer": 2, "n_head": 3 + 1}

CAUSAL: dict[str, dict[str, Any]] = {
    "bart": _BART,
    "bert": _BERT,
    "big_bird": {**_BERT, "attention_type": "original_full"},
    "bloom": _BLOOM,
    "electra": {**_BERT, "embedding_size": 16},
    "gemma": {**_LLAMA, "head_dim": 8},
    "gpt-sw3": _GPT,
    "gpt2": _GPT,
    "gpt_neo": _NEO,
    "gptj": {**_GPT, "rotary_dim": 4},
    "llama": _LLAMA,
    "mistral": {**_LLAMA, "sliding_window": 7},
    "opt": _OPT,
    "roberta": {**_BERT, "pad_token_id": 1},
    "roberta-prelayernorm": {**_BERT, "pad_token_id": 1},
    "xglm": _XGLM,
    "xlm-roberta": {**_BERT, "pad_token_id": 1},
}
SEQ_TO_SEQ: dict[str, dict[str, Any]] = {
    "bart": _BART,
    "blenderbot": _BART,
    "blenderbot-small": _BART,
    "longt5": {**_T5, "local_radius": 4},
    "marian": {**_BART, "decoder_start_token_id": 0},
    "mbart": _BART,
    "mt5": _T5,
    "pegasus": {**_BART, "decoder_start_token_id": 0},
    "t5": _T5,
}


class TinyFlax(NamedTuple):
    """A model, and parameters large enough that its logits differ."""

    model: Any
    params: Any


def causal(kind: str, **settings: Any) -> TinyFlax:
    """A class that continues a text."""
    return _made(flax_class(kind), kind, {**CAUSAL[kind], **settings})


def seq_to_seq(kind: str, **settings: Any) -> TinyFlax:
    """A class with an encoder and a decoder."""
    import transformers  # noqa: PLC0415
    from transformers.models.auto import modeling_flax_auto as auto  # noqa: PLC0415

    if kind == "encoder-decoder":
        return _composed(settings)
    mend()
    name = auto.FLAX_MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES[kind]
    made = getattr(transformers, name)
    return _made(made, kind, {**SEQ_TO_SEQ[kind], **settings})


def config_of(kind: str, **settings: Any) -> Any:
    """A configuration by the name of its model type."""
    import transformers  # noqa: PLC0415  # takes a second

    if kind == "gpt-sw3":
        return transformers.GPT2Config(**settings)
    return transformers.AutoConfig.for_model(kind, **settings)


def flax_class(kind: str) -> Any:
    """The class that continues a text, mended."""
    import transformers  # noqa: PLC0415
    from transformers.models.auto import modeling_flax_auto as auto  # noqa: PLC0415

    mend()
    return getattr(transformers, auto.FLAX_MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[kind])


def _made(kind_class: Any, kind: str, settings: dict[str, Any]) -> TinyFlax:
    with jax.numpy_dtype_promotion("standard"):
        model = kind_class(config_of(kind, **settings), seed=0)
    return TinyFlax(model, enlarged(model.params))


def longer(kind: str, positions: int) -> dict[str, int]:
    """The setting of a class that says how many positions it has, if it has one."""
    known = {**CAUSAL, **SEQ_TO_SEQ}.get(kind, _BERT)
    names = ("n_positions", "max_position_embeddings")
    return {name: positions for name in names if name in known}


def _composed(settings: dict[str, Any]) -> TinyFlax:
    import transformers  # noqa: PLC0415

    settings = {"vocab_size": VOCAB, "max_position_embeddings": 64, **settings}
    encoder = transformers.BertConfig(**{**_BERT, **settings, "is_decoder": False})
    inner = {"is_decoder": True, "add_cross_attention": True, "n_inner": 48}
    decoder = transformers.GPT2Config(**{**_GPT, **settings, **inner})
    config = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(
        encoder, decoder, decoder_start_token_id=1, pad_token_id=0, eos_token_id=2
    )
    model = transformers.FlaxEncoderDecoderModel(config, seed=0)
    return TinyFlax(model, enlarged(model.params))


def enlarged(params: Any) -> Any:
    """Weights of tiny models are so small that all logits are alike."""
    rng = np.random.default_rng(0)

    def enlarge(leaf: Any) -> Any:
        noise = rng.standard_normal(leaf.shape).astype(np.float32) * 0.1
        return leaf + noise.astype(leaf.dtype)

    return jax.tree.map(enlarge, params)
