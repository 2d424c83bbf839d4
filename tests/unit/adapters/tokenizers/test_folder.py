import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models
from transformers import AutoTokenizer

from jaxserver.adapters.tokenizers import from_folder
from jaxserver.ports.errors import BrokenCheckpoint, UnsupportedModel
from tests.contract import tiny_tokenizers as tiny


def saved(folder: Path, **files: Any) -> Path:
    return tiny.save(tiny.single_digits(), folder, **files)


def test_two_that_are_read_from_the_same_files_have_one_digest(tmp_path: Path) -> None:
    folder = saved(tmp_path, tokenizer_config={"eos_token": "<|im_end|>"})
    assert from_folder(folder).digest() == from_folder(folder).digest()


@pytest.mark.parametrize("changed", ["end", "vocabulary", "pieces"])
def test_whatever_decides_about_ids_and_text_changes_the_digest(
    tmp_path: Path, changed: str
) -> None:
    folder = saved(tmp_path, tokenizer_config={"eos_token": "<|im_end|>"})
    before = from_folder(folder)
    if changed == "end":
        folder = saved(tmp_path, generation_config={"eos_token_id": [0]})
    if changed == "vocabulary":
        file = folder / "tokenizer.json"
        file.write_text(file.read_text("utf-8").replace("<tool> ", "<tool>"), "utf-8")
    after = from_folder(folder)
    if changed == "pieces":
        after = dataclasses.replace(after, pieces=(*after.pieces[:-1], b"other"))
    assert after.digest() != before.digest()


@pytest.mark.parametrize("named", ["<|im_end|>", {"content": "<|im_end|>"}])
def test_the_tokenizers_own_end_is_an_end(tmp_path: Path, named: object) -> None:
    folder = saved(tmp_path, tokenizer_config={"eos_token": named})
    assert from_folder(folder).eos_ids == {2}


def test_all_ends_of_the_generation_settings_count(tmp_path: Path) -> None:
    settings = {"eos_token": "<|im_end|>", "bos_token": None}
    generation = {"eos_token_id": [0, 1]}
    config = {"eos_token_id": 7}
    folder = saved(
        tmp_path,
        tokenizer_config=settings,
        generation_config=generation,
        config=config,
    )
    assert from_folder(folder).eos_ids == {0, 1, 2}


def test_the_models_configuration_speaks_where_nothing_else_does(
    tmp_path: Path,
) -> None:
    folder = saved(tmp_path, config={"eos_token_id": 0, "bos_token_id": 1})
    tokenizer = from_folder(folder)
    assert tokenizer.eos_ids == {0}
    assert tokenizer.bos_id == 1


def test_a_beginning_of_text_that_is_written_is_not_added_again(tmp_path: Path) -> None:
    folder = saved(tmp_path, special_tokens_map={"bos_token": "<|im_start|>"})
    tokenizer = from_folder(folder)
    assert tokenizer.encode("the")[0] == 1
    assert tokenizer.encode("<|im_start|>the") == tokenizer.encode("the")


def test_lengths_kept_in_the_file_neither_cut_nor_fill_a_text(tmp_path: Path) -> None:
    encoder = Tokenizer.from_str(tiny.single_digits().to_str())
    encoder.enable_truncation(2)
    encoder.enable_padding(length=50)
    tokenizer = from_folder(tiny.save(encoder, tmp_path))
    text = "the quick brown fox"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert 2 < len(tokenizer.encode(text)) < 50


def test_a_token_that_only_the_settings_call_special_is_special(tmp_path: Path) -> None:
    encoder = Tokenizer(models.BPE({"a": 0, "[END]": 1}, []))
    encoder.decoder = decoders.ByteLevel()
    folder = tiny.save(
        encoder,
        tmp_path,
        tokenizer_config={"eos_token": "[END]", "pad_token": "[NOT THERE]"},
    )
    tokenizer = from_folder(folder)
    assert tokenizer.encode("a[END]") == [0, 1]
    assert tokenizer.token_bytes(1) == b""
    assert tokenizer.vocab_size == 2


def test_a_sentencepiece_file_alone_is_enough(tmp_path: Path) -> None:
    tokenizer = from_folder(tiny.save_sentencepiece(tmp_path))
    assert tokenizer.bos_id == 1
    assert tokenizer.eos_ids == {2}
    assert tokenizer.strips_leading_space
    theirs = tiny.sentencepiece_processor().encode("the quick fox")
    assert tokenizer.encode("the quick fox") == [1, *theirs]


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"add_bos_token": False},
        {"add_eos_token": True},
        {"bos_token": "<s>", "eos_token": "</s>"},
    ],
)
def test_llamas_settings_say_what_is_added_to_a_text(
    tmp_path: Path, keys: dict[str, bool]
) -> None:
    tiny.save_sentencepiece(tmp_path / "slow")
    encoder = from_folder(tmp_path / "slow").encoder
    settings = {"tokenizer_class": "LlamaTokenizerFast", **keys}
    folder = tiny.save(encoder, tmp_path / "fast", tokenizer_config=settings)
    theirs = AutoTokenizer.from_pretrained(folder)
    assert from_folder(folder).encode("the fox") == theirs("the fox")["input_ids"]


def test_a_vocabulary_and_its_merges_are_enough(tmp_path: Path) -> None:
    tiny.spanning_words().model.save(str(tmp_path))
    tiny.write_json(tmp_path, tokenizer_config={"tokenizer_class": "GPT2Tokenizer"})
    tokenizer = from_folder(tmp_path)
    assert tokenizer.decode(tokenizer.encode("the fox's 12")) == "the fox's 12"
    assert tokenizer.eos_ids == {0}


def test_word_pieces_take_no_space_before_punctuation(tmp_path: Path) -> None:
    tokenizer = from_folder(tiny.save(tiny.word_piece(), tmp_path))
    ids = tokenizer.encode("the lazy dog, jumps!")
    assert tokenizer.decode(ids) == tokenizer.encoder.decode(ids)
    assert tokenizer.decode(ids) == "the lazy dog, jumps!"


def test_a_folder_without_a_tokenizer_is_broken(tmp_path: Path) -> None:
    with pytest.raises(BrokenCheckpoint, match=r"tokenizer\.json or one of.*none"):
        from_folder(tmp_path)


LONG = f'{{"%s": "{"x" * 513}"}}'


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("tokenizer.json", "{", "a JSON object"),
        ("tokenizer.json", "{}", "a tokenizer as JSON"),
        ("tokenizer_config.json", "{", "a JSON object"),
        ("generation_config.json", "[]", "a JSON object, found a list"),
        ("tokenizer_config.json", "[" * 5_000, "a JSON object"),
        # Half of a character, which is no text that a vocabulary could have.
        ("tokenizer_config.json", r'{"bos_token": "\ud800"}', "a JSON object"),
        ("tokenizer_config.json", LONG % "bos_token", "at most 512 .* one of 513"),
        (
            "added_tokens.json",
            LONG.replace("%s", "x" * 513),
            "at most 512 .* one of 513",
        ),
    ],
)
def test_a_file_that_cannot_be_read_is_named(
    tmp_path: Path, name: str, content: str, expected: str
) -> None:
    saved(tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(BrokenCheckpoint, match=f"{name}.*{expected}"):
        from_folder(tmp_path)


def test_a_vocabulary_that_transformers_cannot_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text(json.dumps({"a": 0}))
    with pytest.raises(UnsupportedModel, match="transformers can convert"):
        from_folder(tmp_path)


def test_a_tokenizer_that_has_no_fast_form_is_refused(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("")
    tiny.write_json(tmp_path, tokenizer_config={"tokenizer_class": "ByT5Tokenizer"})
    with pytest.raises(UnsupportedModel, match="ByT5Tokenizer"):
        from_folder(tmp_path)


@pytest.mark.parametrize("decoder", [None, decoders.CTC(), decoders.BPEDecoder()])
def test_a_decoder_of_unknown_kind_is_refused(tmp_path: Path, decoder: Any) -> None:
    encoder = Tokenizer(models.BPE({"a": 0}, []))
    if decoder is not None:
        encoder.decoder = decoder
    with pytest.raises(UnsupportedModel, match=r"decoder.*byte-level"):
        from_folder(tiny.save(encoder, tmp_path))
