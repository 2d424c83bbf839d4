"""Every setting of every causal class with a PyTorch twin, and what becomes of it.

A setting is moved off its default in one of a class's variants, whose logits equal
PyTorch's; or it is refused by name; or it does not touch logits. A test holds that none
is left out. `tests/reference/make_flax_variants.py` writes what PyTorch answers.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

Settings = Mapping[str, Any]


class Kind(NamedTuple):
    """The settings of one class.

    Attributes:
        variants: Settings whose logits are compared with PyTorch's.
        refused: Settings, each alone over the first variant, that are refused.
        inert: Settings that do not touch the logits of a text.
    """

    variants: Mapping[str, Settings]
    refused: Settings
    inert: frozenset[str]


INERT_EVERYWHERE = frozenset(
    [
        # What the files are, and how outputs are handed over.
        *("_name_or_path", "architectures", "dtype", "finetuning_task", "model_type"),
        *("id2label", "label2id", "prefix", "problem_type", "task_specific_params"),
        *("tf_legacy_loss", "tokenizer_class", "torchscript", "transformers_version"),
        *("output_attentions", "output_hidden_states", "output_scores", "return_dict"),
        *("return_dict_in_generate", "use_bfloat16", "use_cache"),
        # How tokens are chosen once there are logits.
        *("bad_words_ids", "begin_suppress_tokens", "bos_token_id", "eos_token_id"),
        *("decoder_start_token_id", "diversity_penalty", "do_sample", "early_stopping"),
        *("encoder_no_repeat_ngram_size", "exponential_decay_length_penalty"),
        *("forced_bos_token_id", "forced_eos_token_id", "length_penalty", "max_length"),
        *("min_length", "no_repeat_ngram_size", "num_beam_groups", "num_beams"),
        *("num_return_sequences", "remove_invalid_values", "repetition_penalty"),
        *("sep_token_id", "suppress_tokens", "temperature", "top_k", "top_p"),
        "typical_p",
        # An encoder, which these classes have none of.
        *("cross_attention_hidden_size", "is_encoder_decoder", "tie_encoder_decoder"),
        # How memory is used: the same sums in pieces.
        "chunk_size_feed_forward",
    ]
)
PRUNED = {"pruned_heads": {0: [1]}}
LINEAR = {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}
NOT_IN_FLAX = "relu2"
"""An activation that PyTorch has and the Flax classes do not."""

ACTIVATION = {**PRUNED, "activation_function": NOT_IN_FLAX}
HIDDEN_ACT = {**PRUNED, "hidden_act": NOT_IN_FLAX}

_SIZES = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2}
_BERT = {
    **_SIZES,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 40,
    "is_decoder": True,
}
_BERT_INERT = frozenset(
    [
        *("attention_probs_dropout_prob", "hidden_dropout_prob", "classifier_dropout"),
        *("initializer_range", "pad_token_id"),
    ]
)
_SUMMARY = frozenset(["summary_activation", "summary_type", "summary_use_proj"])
_ROBERTA = {**_BERT, "pad_token_id": 5, "layer_norm_eps": 1e-3}


def _roberta(unlike: str) -> Kind:
    return Kind(
        variants={
            "wide_eps": {**_ROBERTA, "type_vocab_size": 3, "hidden_act": unlike},
            "untied": {**_ROBERTA, "tie_word_embeddings": False},
            "crossed": {**_ROBERTA, "add_cross_attention": True},
        },
        refused={**HIDDEN_ACT, "position_embedding_type": "relative_key"},
        inert=_BERT_INERT - {"pad_token_id"},
    )


_LLAMA = {
    **_SIZES,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 48,
    "rms_norm_eps": 1e-2,
    "rope_theta": 300.0,
}
_ROTARY_INERT = frozenset(
    [
        *("attention_dropout", "initializer_range", "pad_token_id"),
        *("pretraining_tp", "add_cross_attention", "is_decoder"),
    ]
)
_GPT = {
    "vocab_size": 40,
    "n_positions": 40,
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 2,
    "layer_norm_epsilon": 1e-2,
}
_GPT_INERT = frozenset(
    ["attn_pdrop", "embd_pdrop", "resid_pdrop", "initializer_range", "pad_token_id"]
)
_NEO = {
    "vocab_size": 40,
    "max_position_embeddings": 40,
    "hidden_size": 16,
    "num_layers": 2,
    "num_heads": 2,
    "attention_types": [[["local", "global"], 1]],
    "window_size": 4,
    "layer_norm_epsilon": 1e-2,
}
_OPT = {
    **_SIZES,
    "ffn_dim": 24,
    "max_position_embeddings": 40,
    "num_attention_heads": 2,
    "word_embed_proj_dim": 16,
}
_BART = {
    "vocab_size": 40,
    "d_model": 16,
    "decoder_layers": 2,
    "decoder_attention_heads": 2,
    "decoder_ffn_dim": 24,
    "max_position_embeddings": 40,
}
_XGLM = {
    "vocab_size": 40,
    "d_model": 16,
    "ffn_dim": 24,
    "num_layers": 2,
    "attention_heads": 2,
    "max_position_embeddings": 40,
}

KINDS: Mapping[str, Kind] = {
    "bart": Kind(
        variants={
            "scaled": {**_BART, "scale_embedding": True, "activation_function": "relu"},
            "untied": {**_BART, "tie_word_embeddings": False},
        },
        refused=ACTIVATION,
        inert=frozenset(
            [
                *("encoder_attention_heads", "encoder_ffn_dim", "encoder_layers"),
                *("encoder_layerdrop", "decoder_layerdrop", "num_hidden_layers"),
                *("activation_dropout", "attention_dropout", "classifier_dropout"),
                *("dropout", "init_std", "pad_token_id"),
                *("add_cross_attention", "is_decoder"),  # the class sets them itself
            ]
        ),
    ),
    "bert": Kind(
        variants={
            "wide_eps": {**_BERT, "layer_norm_eps": 1e-2, "type_vocab_size": 3},
            "untied": {**_BERT, "tie_word_embeddings": False, "hidden_act": "relu"},
            "crossed": {**_BERT, "add_cross_attention": True, "hidden_act": "silu"},
        },
        refused={**HIDDEN_ACT, "position_embedding_type": "relative_key_query"},
        inert=_BERT_INERT,
    ),
    "big_bird": Kind(
        variants={
            "rescaled": {
                **_BERT,
                "attention_type": "original_full",
                "add_cross_attention": True,
                "rescale_embeddings": True,
                "layer_norm_eps": 1e-2,
                "type_vocab_size": 3,
            },
            "sparse": {
                **_BERT,
                "block_size": 8,
                "num_random_blocks": 1,
                "tie_word_embeddings": False,
                "hidden_act": "tanh",
            },
        },
        refused={**HIDDEN_ACT, "use_bias": False},
        inert=_BERT_INERT,
    ),
    "bloom": Kind(
        variants={
            "residual": {
                "vocab_size": 40,
                "hidden_size": 32,
                "n_layer": 3,
                "n_head": 4,
                "layer_norm_epsilon": 1e-2,
                "apply_residual_connection_post_layernorm": True,
            },
            "three_heads": {
                "vocab_size": 40,
                "hidden_size": 24,
                "n_layer": 2,
                "n_head": 3,
                "pretraining_tp": 2,
                "tie_word_embeddings": False,
            },
        },
        refused={**PRUNED, "slow_but_exact": True},
        inert=frozenset(
            [
                *("attention_dropout", "hidden_dropout", "initializer_range"),
                *("pad_token_id", "add_cross_attention", "is_decoder"),
            ]
        ),
    ),
    "electra": Kind(
        variants={
            "projected": {**_BERT, "embedding_size": 12, "layer_norm_eps": 1e-2},
            "untied": {
                **_BERT,
                "embedding_size": 16,
                "add_cross_attention": True,
                "tie_word_embeddings": False,
                "type_vocab_size": 3,
            },
        },
        refused={
            **PRUNED,
            "position_embedding_type": "relative_key",
            "hidden_act": "relu",
        },
        inert=_BERT_INERT | _SUMMARY | {"summary_last_dropout"},
    ),
    "gemma": Kind(
        variants={
            "biased": {
                **_LLAMA,
                "head_dim": 6,
                "attention_bias": True,
                "hidden_act": "gelu",
            },
            "untied": {
                **_LLAMA,
                "head_dim": 4,
                "tie_word_embeddings": False,
                "hidden_activation": "relu",
            },
        },
        refused={**HIDDEN_ACT, **LINEAR},
        inert=_ROTARY_INERT,
    ),
    "gpt2": Kind(
        variants={
            "narrow": {
                **_GPT,
                "n_inner": 24,
                "activation_function": "relu",
                "reorder_and_upcast_attn": True,
            },
            "untied": {
                **_GPT,
                "tie_word_embeddings": False,
                "activation_function": "gelu",
            },
            "crossed": {**_GPT, "add_cross_attention": True},
        },
        refused={
            **ACTIVATION,
            "scale_attn_weights": False,
            "scale_attn_by_inverse_layer_idx": True,
        },
        inert=_GPT_INERT
        | _SUMMARY
        | {"summary_first_dropout", "summary_proj_to_labels", "is_decoder"},
    ),
    "gpt_neo": Kind(
        variants={
            "windowed": {**_NEO, "intermediate_size": 24},
            "untied": {
                **_NEO,
                "tie_word_embeddings": False,
                "activation_function": "quick_gelu",
            },
        },
        refused=ACTIVATION,
        inert=frozenset(
            [
                *("attention_dropout", "classifier_dropout", "embed_dropout"),
                *("resid_dropout", "initializer_range", "pad_token_id"),
                *("add_cross_attention", "is_decoder"),
            ]
        ),
    ),
    "gptj": Kind(
        variants={
            "rotated": {**_GPT, "rotary_dim": 4, "n_inner": 24},
            "relu": {**_GPT, "rotary_dim": 8, "activation_function": "relu"},
        },
        refused={**ACTIVATION, "tie_word_embeddings": True},
        inert=_GPT_INERT | {"add_cross_attention", "is_decoder"},
    ),
    "llama": Kind(
        variants={
            "biased": {**_LLAMA, "attention_bias": True, "hidden_act": "gelu"},
            "tied": {**_LLAMA, "tie_word_embeddings": True, "num_key_value_heads": 1},
        },
        refused={**HIDDEN_ACT, **LINEAR, "mlp_bias": True, "head_dim": 8},
        inert=_ROTARY_INERT,
    ),
    "mistral": Kind(
        variants={
            "windowed": {**_LLAMA, "sliding_window": 5, "hidden_act": "gelu_new"},
            "unbound": {**_LLAMA, "sliding_window": None, "tie_word_embeddings": True},
        },
        refused={**HIDDEN_ACT, **LINEAR, "head_dim": 8},
        inert=_ROTARY_INERT,
    ),
    "opt": Kind(
        variants={
            "projected": {
                **_OPT,
                "word_embed_proj_dim": 12,
                "do_layer_norm_before": False,
                "activation_function": "gelu",
            },
            "bare": {
                **_OPT,
                "enable_bias": False,
                "layer_norm_elementwise_affine": False,
                "_remove_final_layer_norm": True,
                "tie_word_embeddings": False,
            },
        },
        refused=ACTIVATION,
        inert=frozenset(
            [
                *("attention_dropout", "dropout", "layerdrop", "init_std"),
                *("pad_token_id", "add_cross_attention", "is_decoder"),
            ]
        ),
    ),
    "roberta": _roberta("relu"),
    "roberta-prelayernorm": _roberta("gelu_new"),
    "xglm": Kind(
        variants={
            "unscaled": {
                **_XGLM,
                "scale_embedding": False,
                "activation_function": "relu",
            },
            "untied": {**_XGLM, "tie_word_embeddings": False, "pad_token_id": 0},
        },
        refused={**ACTIVATION, "add_cross_attention": True, "pad_token_id": 4},
        inert=frozenset(
            [
                *("activation_dropout", "attention_dropout", "dropout", "layerdrop"),
                *("init_std", "is_decoder"),
            ]
        ),
    ),
    "xlm-roberta": _roberta("silu"),
}
VARIANTS = [(kind, name) for kind, known in KINDS.items() for name in known.variants]
TIME = 24


def moved(kind: str, defaults: Settings) -> set[str]:
    """The settings that one of a class's variants moves off its default."""
    found: set[str] = set()
    for settings in KINDS[kind].variants.values():
        found |= {
            name
            for name, value in settings.items()
            if name in defaults and defaults[name] != value
        }
    return found
