"""Tiny tokenizers trained on a few lines, as folders and as GGUF metadata."""

import functools
import io
import json
from pathlib import Path
from typing import Any

import sentencepiece
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    pre_tokenizers,
    processors,
    trainers,
)

LINES = [
    "the quick brown fox jumps over the lazy dog",
    "The Quick Brown Fox doesn't jump, it's LAZY!",
    "numbers 1 22 333 4444 55555 and 3.14159",
    "na\u00efve caf\u00e9 Z\u00fcrich, \u65e5\u672c\u8a9e, \U0001f642\U0001f642",
    "def f(x):\n    if x:\n\n        return  x + 1\r\n",
    "aa aaa  aaaa   aaaaa    aaaaaa ab abab ababab",
] * 8
CONTROLS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHATML = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"


def train_byte_level(pre_tokenizer: Any) -> Tokenizer:
    """Byte-level merges over whatever pieces a pre-tokenizer makes."""
    encoder = Tokenizer(models.BPE())
    encoder.pre_tokenizer = pre_tokenizer
    encoder.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=480,
        special_tokens=CONTROLS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    encoder.train_from_iterator(LINES, trainer)
    encoder.add_tokens([AddedToken("<tool> ", normalized=False)])
    return encoder


@functools.cache
def single_digits() -> Tokenizer:
    """As SmolLM splits text."""
    steps = [
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    ]
    encoder = train_byte_level(pre_tokenizers.Sequence(steps))
    encoder.post_processor = processors.TemplateProcessing(
        single=["<|im_start|>", "$A"], special_tokens=[("<|im_start|>", 1)]
    )
    return encoder


@functools.cache
def spanning_words() -> Tokenizer:
    """Has tokens over the borders of words, so that every split shows."""
    return train_byte_level(
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    )


def save(encoder: Tokenizer, folder: Path, **files: Any) -> Path:
    """Writes a folder: `tokenizer.json`, and a JSON file for each keyword."""
    folder.mkdir(parents=True, exist_ok=True)
    encoder.save(str(folder / "tokenizer.json"))
    return write_json(folder, **files)


def write_json(folder: Path, **files: Any) -> Path:
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content), "utf-8")
    return folder


def byte_level_metadata(
    encoder: Tokenizer, pre: str | None, **keys: Any
) -> dict[str, Any]:
    """What a converter to GGUF writes about a byte-level vocabulary."""
    content = json.loads(encoder.to_str())
    tokens = sorted(encoder.get_vocab(), key=encoder.get_vocab().__getitem__)
    added = encoder.get_added_tokens_decoder()
    types = [
        1 if i not in added else 3 if added[i].special else 4
        for i in range(len(tokens))
    ]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": [
            " ".join(pair) for pair in content["model"]["merges"]
        ],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 0,
        **{f"tokenizer.ggml.{key}": value for key, value in keys.items()},
    }


@functools.cache
def sentencepiece_model() -> bytes:
    """A vocabulary as Llama's: scores, a prefix space, bytes for unknown characters."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(LINES),
        model_writer=model,
        model_type="bpe",
        vocab_size=380,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        character_coverage=0.98,
        hard_vocab_limit=False,
        pad_id=-1,
        minloglevel=2,
    )
    return model.getvalue()


def sentencepiece_processor() -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model())


def save_sentencepiece(folder: Path, **settings: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(sentencepiece_model())
    config = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", **settings}
    return write_json(folder, tokenizer_config={"eos_token": "</s>", **config})


def sentencepiece_metadata(**keys: Any) -> dict[str, Any]:
    """What a converter to GGUF writes about a sentencepiece vocabulary."""
    model = sentencepiece_processor()
    ids = range(model.vocab_size())
    kinds = [(2, model.is_unknown), (3, model.is_control), (6, model.is_byte)]
    types = [next((kind for kind, is_it in kinds if is_it(i)), 1) for i in ids]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [model.id_to_piece(i) for i in ids],
        "tokenizer.ggml.scores": [model.get_score(i) for i in ids],
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        **{f"tokenizer.ggml.{key}": value for key, value in keys.items()},
    }


@functools.cache
def word_piece() -> Tokenizer:
    """A vocabulary as Bert's."""
    encoder = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    encoder.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    encoder.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    trainer = trainers.WordPieceTrainer(
        vocab_size=200, special_tokens=["[UNK]", "[CLS]", "[SEP]"], show_progress=False
    )
    encoder.train_from_iterator(LINES, trainer)
    return encoder


@functools.cache
def unigram() -> Tokenizer:
    """A vocabulary as T5's."""
    encoder = Tokenizer(models.Unigram())
    encoder.pre_tokenizer = pre_tokenizers.Metaspace()
    encoder.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=200,
        special_tokens=["<pad>", "</s>", "<unk>"],
        unk_token="<unk>",
        show_progress=False,
    )
    encoder.train_from_iterator(LINES, trainer)
    return encoder
