"""What every tokenizer promises, whatever checkpoint it came from."""

import concurrent.futures
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxserver.adapters.tokenizers import from_folder, from_gguf
from jaxserver.ports.tokenizer import Tokenizer
from tests.contract import tiny_tokenizers as tiny
from tests.fakes import ByteTokenizer

TEXTS = ["the quick brown fox", "the lazy dog jumps over the fox", "and 3"]


def fake(_: Path) -> Tokenizer:
    return ByteTokenizer()


def byte_level_folder(folder: Path) -> Tokenizer:
    settings = {"bos_token": "<|im_start|>", "eos_token": {"content": "<|im_end|>"}}
    return from_folder(
        tiny.save(tiny.single_digits(), folder, tokenizer_config=settings)
    )


def byte_level_gguf(_: Path) -> Tokenizer:
    return from_gguf(tiny.byte_level_metadata(tiny.single_digits(), "smollm"))


def sentencepiece_folder(folder: Path) -> Tokenizer:
    return from_folder(tiny.save_sentencepiece(folder))


def sentencepiece_gguf(_: Path) -> Tokenizer:
    return from_gguf(tiny.sentencepiece_metadata())


def sentencepiece_gguf_without_prefix(_: Path) -> Tokenizer:
    return from_gguf(tiny.sentencepiece_metadata(add_space_prefix=False))


def word_piece_folder(folder: Path) -> Tokenizer:
    return from_folder(tiny.save(tiny.word_piece(), folder))


def unigram_folder(folder: Path) -> Tokenizer:
    settings = {"eos_token": "</s>"}
    return from_folder(tiny.save(tiny.unigram(), folder, tokenizer_config=settings))


BUILDERS: list[Callable[[Path], Tokenizer]] = [
    fake,
    byte_level_folder,
    byte_level_gguf,
    sentencepiece_folder,
    sentencepiece_gguf,
    sentencepiece_gguf_without_prefix,
    word_piece_folder,
    unigram_folder,
]


@pytest.fixture(scope="module", params=BUILDERS, ids=lambda build: build.__name__)
def tokenizer(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Tokenizer:
    built: Tokenizer = request.param(tmp_path_factory.mktemp("tokenizer"))
    return built


@given(data=st.data())
def test_any_ids_decode_to_the_bytes_of_their_tokens(
    tokenizer: Tokenizer, data: st.DataObject
) -> None:
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=30))
    text = b"".join(tokenizer.token_bytes(token) for token in ids)
    if tokenizer.strips_leading_space and text.startswith(b" "):
        text = text[1:]
    assert tokenizer.decode(ids) == text.decode("utf-8", errors="replace")


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_survives_its_tokens(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == text
    assert all(0 <= token < tokenizer.vocab_size for token in ids)


def test_special_tokens_add_nothing_to_the_text(tokenizer: Tokenizer) -> None:
    special = {*tokenizer.eos_ids, tokenizer.bos_id} - {None}
    assert b"".join(tokenizer.token_bytes(token) for token in special if token) == b""
    assert all(0 <= token < tokenizer.vocab_size for token in special if token)


@pytest.mark.parametrize("text", ["", *TEXTS])
def test_settings_add_at_most_one_beginning_of_text(
    tokenizer: Tokenizer, text: str
) -> None:
    whole = tokenizer.encode(text)
    plain = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.bos_id not in plain
    assert whole.count(tokenizer.bos_id or 0) <= 1
    assert [token for token in whole if token != tokenizer.bos_id] == plain


def test_eight_threads_get_what_one_gets(tokenizer: Tokenizer) -> None:
    texts = [f"{TEXTS[i % len(TEXTS)]} {i % 7}" for i in range(200)]

    def there_and_back(text: str) -> tuple[list[int], str]:
        ids = tokenizer.encode(text)
        return ids, tokenizer.decode(ids)

    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        together = list(threads.map(there_and_back, texts))
    assert together == [there_and_back(text) for text in texts]
