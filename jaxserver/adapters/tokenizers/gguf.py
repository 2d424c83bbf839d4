"""A tokenizer from the metadata of a GGUF file."""

import reprlib
from collections.abc import Mapping
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

from jaxserver.adapters.tokenizers.ends import put_around
from jaxserver.adapters.tokenizers.merges import merges_by_score
from jaxserver.adapters.tokenizers.splits import split_named
from jaxserver.adapters.tokenizers.tokenizer import PieceTokenizer
from jaxserver.adapters.tokenizers.vocabulary import TokenType, Vocabulary
from jaxserver.ports.errors import UnsupportedModel

SPACE = "\u2581"  # what sentencepiece writes for a space


def from_gguf(
    metadata: Mapping[str, Any], *, file: str = "GGUF metadata"
) -> PieceTokenizer:
    """Builds the tokenizer that a GGUF file describes.

    Args:
        metadata: Plain values under the names of the file.
        file: What errors call the file.

    Raises:
        UnsupportedModel: The kind of vocabulary, or its way of splitting text, is not
            known here.
        BrokenCheckpoint: The keys do not fit together.
    """
    kind = metadata.get("tokenizer.ggml.model")
    if not isinstance(kind, str) or kind not in _ENCODERS:
        model = f"a model whose tokenizer.ggml.model is {reprlib.repr(kind)}"
        raise UnsupportedModel(model, ", ".join(sorted(_ENCODERS)))
    vocabulary = Vocabulary.of(metadata, file)
    encoder = _ENCODERS[kind](vocabulary)
    _add_tokens(encoder, vocabulary)
    return PieceTokenizer.of(
        encoder,
        bos_id=vocabulary.token_id("bos_token_id"),
        eos_ids=vocabulary.eos_ids(),
        unused=frozenset(vocabulary.of_type(TokenType.UNUSED)),
    )


def _byte_level(vocabulary: Vocabulary) -> Tokenizer:
    """GPT-2's kind: merges of bytes within pieces of text."""
    split = split_named(vocabulary.metadata.get("tokenizer.ggml.pre"))
    if vocabulary.flag("add_space_prefix", default=False):
        raise UnsupportedModel(
            "a byte-level vocabulary with tokenizer.ggml.add_space_prefix", "false"
        )
    merges = [merge.split(" ", 1) for merge in vocabulary.values("merges", str)]
    if any(len(pair) != 2 for pair in merges):
        raise vocabulary.broken("merges", "pairs of tokens", "one without a space")
    encoder = Tokenizer(
        _bpe(
            vocabulary,
            merges=list(map(tuple, merges)),
            ignore_merges=split.whole_words_first,
        )
    )
    if split.composes:
        encoder.normalizer = normalizers.NFC()
    encoder.pre_tokenizer = split.pre_tokenizer()
    encoder.decoder = decoders.ByteLevel()
    begin = _end(vocabulary, "bos", is_added=split.adds_bos)
    put_around(encoder, begin, _end(vocabulary, "eos", is_added=False))
    return encoder


def _sentencepiece(vocabulary: Vocabulary) -> Tokenizer:
    """Llama's kind: merges of characters by score, bytes for characters it lacks."""
    scores = vocabulary.values("scores", float)
    vocabulary.check_length("scores", scores)
    normal = vocabulary.of_type(TokenType.NORMAL)
    merges = merges_by_score({vocabulary.tokens[i]: scores[i] for i in normal})
    unknown = vocabulary.token_id("unknown_token_id")
    encoder = Tokenizer(
        _bpe(
            vocabulary,
            merges=merges,
            unk_token=None if unknown is None else vocabulary.tokens[unknown],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    has_prefix = vocabulary.flag("add_space_prefix", default=True)
    prefix = [normalizers.Prepend(SPACE)] if has_prefix else []
    strip = [decoders.Strip(" ", 1, 0)] if has_prefix else []
    spaces = normalizers.Replace(" ", SPACE)
    encoder.normalizer = normalizers.Sequence([*prefix, spaces])
    encoder.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    begin = _end(vocabulary, "bos", is_added=True)
    put_around(encoder, begin, _end(vocabulary, "eos", is_added=False))
    return encoder


_ENCODERS = {"gpt2": _byte_level, "llama": _sentencepiece}


def _bpe(vocabulary: Vocabulary, **settings: Any) -> models.BPE:
    try:
        return models.BPE(vocab=vocabulary.ids(), **settings)
    except Exception as error:  # the library raises nothing narrower
        raise vocabulary.broken("merges", "pairs of tokens", str(error)) from error


def _add_tokens(encoder: Tokenizer, vocabulary: Vocabulary) -> None:
    """Has tokens found in a text before it is split, special ones left out of texts."""
    special = vocabulary.of_type(TokenType.CONTROL, TokenType.UNKNOWN)
    encoder.add_special_tokens([vocabulary.tokens[token] for token in special])
    written = vocabulary.of_type(TokenType.USER_DEFINED)
    encoder.add_tokens(
        [AddedToken(vocabulary.tokens[token], normalized=False) for token in written]
    )


def _end(vocabulary: Vocabulary, name: str, *, is_added: bool) -> dict[str, int]:
    """The token at one end of a text, where the file says so or else `is_added`."""
    token = vocabulary.token_id(f"{name}_token_id")
    if token is None or not vocabulary.flag(f"add_{name}_token", default=is_added):
        return {}
    return {vocabulary.tokens[token]: token}
