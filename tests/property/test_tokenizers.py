"""Tokenizers agree with the libraries that trained their vocabularies."""

import inspect
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, pre_tokenizers
from transformers import GPT2TokenizerFast, Qwen2TokenizerFast
from transformers.convert_slow_tokenizer import TikTokenConverter

from jaxserver.adapters.tokenizers import from_folder, from_gguf
from jaxserver.adapters.tokenizers.tokenizer import PieceTokenizer
from tests.contract import tiny_tokenizers as tiny

# Half a surrogate pair is no text, and U+2581 is how sentencepiece writes a space.
CHARACTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\u2581")
WORDS = ["the", " quick", "LAZY", "'s", "n't", "'LL", "12345", " 7", "\u00b2\u0664"]
SPACES = [" ", "  ", "    ", "\n", " \n\n ", "\r\n", "\t", "\u00a0", "\u3000"]
SIGNS = ["!!", " ...", "caf\u00e9", "e\u0301", "\u65e5\u672c", "\U0001f642", "aaaa"]
TEXTS = st.one_of(
    st.text(CHARACTERS, max_size=40),
    st.lists(st.sampled_from([*WORDS, *SPACES, *SIGNS]), max_size=20).map("".join),
)
SPECIALS = ["<|im_start|>", "<|im_end|>", "<tool> "]
MARKED_TEXTS = st.lists(
    st.sampled_from([*WORDS, *SPACES, *SIGNS, *SPECIALS]), max_size=20
).map("".join)


class Pair(NamedTuple):
    """The tokenizer built here, and one that a library built of the same vocabulary."""

    ours: PieceTokenizer
    theirs: Tokenizer


def gpt2(base: Tokenizer, folder: Path) -> Tokenizer:
    return read_by(GPT2TokenizerFast, base, folder)


def qwen2(base: Tokenizer, folder: Path) -> Tokenizer:
    return read_by(Qwen2TokenizerFast, base, folder)


def smollm(base: Tokenizer, _: Path) -> Tokenizer:
    digits = pre_tokenizers.Digits(individual_digits=True)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return with_split(base, digits, byte_level)


def llama3(base: Tokenizer, _: Path) -> Tokenizer:
    pattern = inspect.signature(TikTokenConverter).parameters["pattern"].default
    words = pre_tokenizers.Split(Regex(pattern), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    encoder = with_split(base, words, byte_level)
    encoder.model.ignore_merges = True
    return encoder


def with_split(base: Tokenizer, *steps: Any) -> Tokenizer:
    encoder = Tokenizer.from_str(base.to_str())
    encoder.pre_tokenizer = pre_tokenizers.Sequence(list(steps))
    return encoder


def read_by(reader: Any, base: Tokenizer, folder: Path) -> Tokenizer:
    vocabulary, merges = base.model.save(str(folder))
    loaded = reader(vocabulary, merges)
    loaded.add_special_tokens({"additional_special_tokens": tiny.CONTROLS})
    loaded.add_tokens(AddedToken("<tool> ", normalized=False))
    return loaded.backend_tokenizer


@pytest.fixture(
    scope="module",
    params=[("gpt-2", gpt2), ("qwen2", qwen2), ("smollm", smollm), ("llama3", llama3)],
    ids=lambda param: param[0],
)
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Pair:
    pre, build = request.param
    base = tiny.spanning_words()
    metadata = tiny.byte_level_metadata(base, pre, add_bos_token=False)
    theirs = build(base, tmp_path_factory.mktemp("vocabulary"))
    return Pair(from_gguf(metadata), theirs)


@given(text=st.one_of(TEXTS, MARKED_TEXTS))
@example(text="it'S 123456 e\u0301 \r\n\r\n  x")
def test_byte_level_tokens_are_the_librarys(pair: Pair, text: str) -> None:
    ids = pair.theirs.encode(text, add_special_tokens=False).ids
    assert pair.ours.encode(text, add_special_tokens=False) == ids
    assert pair.ours.encode(text) == ids
    assert pair.ours.decode(ids) == pair.theirs.decode(ids, skip_special_tokens=True)


@given(text=TEXTS)
def test_a_text_survives_byte_level_tokens(text: str) -> None:
    assume(not any(special in text for special in tiny.CONTROLS))
    tokenizer = from_gguf(tiny.byte_level_metadata(tiny.single_digits(), "smollm"))
    assert tokenizer.decode(tokenizer.encode(text)) == text


SENTENCEPIECE = from_gguf(tiny.sentencepiece_metadata())


@given(text=st.one_of(TEXTS, st.text("ab ", max_size=40)))
@example(text="<0x41>\x00\ufffd")
def test_sentencepiece_tokens_are_the_librarys(text: str) -> None:
    # The library by itself takes special tokens for plain text.
    assume(not any(special in text for special in ("<s>", "</s>", "<unk>")))
    ids = SENTENCEPIECE.encode(text, add_special_tokens=False)
    assert ids == tiny.sentencepiece_processor().encode(text)
    assert SENTENCEPIECE.encode(text) == [1, *ids]
    assert SENTENCEPIECE.decode(ids) == text


@pytest.fixture(scope="module")
def from_files(tmp_path_factory: pytest.TempPathFactory) -> PieceTokenizer:
    return from_folder(tiny.save_sentencepiece(tmp_path_factory.mktemp("llama")))


@given(
    text=st.one_of(TEXTS, st.lists(st.sampled_from(["<s>", "</s>", " a"])).map("".join))
)
def test_a_folder_and_gguf_metadata_give_the_same_tokens(
    from_files: PieceTokenizer, text: str
) -> None:
    ids = from_files.encode(text)
    assert SENTENCEPIECE.encode(text) == ids
    assert SENTENCEPIECE.decode(ids) == from_files.decode(ids)
    theirs = from_files.encoder.decode(ids, skip_special_tokens=True)
    assert from_files.decode(ids) == theirs
