import functools
from typing import Any

import pytest
from tokenizers import Tokenizer

from jaxserver.adapters.tokenizers import from_gguf
from jaxserver.ports.errors import (
    BrokenCheckpoint,
    InvalidRequest,
    UnsupportedModel,
)
from tests.contract import tiny_tokenizers as tiny


@functools.cache
def encoder() -> Tokenizer:
    return tiny.single_digits()


def byte_level(pre: str | None = "smollm", **keys: Any) -> dict[str, Any]:
    return tiny.byte_level_metadata(encoder(), pre, **keys)


def test_special_tokens_in_a_text_are_recognised() -> None:
    ids = from_gguf(byte_level()).encode("<|im_start|>the<|im_end|>")
    assert ids[0] == 1
    assert ids[-1] == 2
    assert len(ids) == 3


def test_user_defined_tokens_are_recognised_and_part_of_the_text() -> None:
    tokenizer = from_gguf(byte_level())
    ids = tokenizer.encode("the<tool> fox")
    assert tokenizer.token_bytes(ids[1]) == b"<tool> "
    assert tokenizer.decode(ids) == "the<tool> fox"


def test_a_text_of_one_piece_that_is_a_token_needs_no_merges_in_llama_3() -> None:
    metadata = byte_level("llama-bpe", merges=[], add_bos_token=False)
    metadata["tokenizer.ggml.tokens"] = [
        "zebra" if text == "<tool> " else text
        for text in metadata["tokenizer.ggml.tokens"]
    ]
    metadata["tokenizer.ggml.token_type"][-1] = 1
    last = len(metadata["tokenizer.ggml.tokens"]) - 1
    whole, merged = from_gguf(metadata), from_gguf({**metadata, **named(pre="gpt-2")})
    assert whole.encode("zebra") == [last]
    assert len(merged.encode("zebra")) == len("zebra")


def named(**keys: Any) -> dict[str, Any]:
    return {f"tokenizer.ggml.{key}": value for key, value in keys.items()}


@pytest.mark.parametrize(
    ("pre", "keys", "begins"),
    [
        ("smollm", {}, False),
        ("smollm", {"add_bos_token": True}, True),
        ("llama-bpe", {}, True),
        ("llama-bpe", {"add_bos_token": False}, False),
    ],
)
def test_the_beginning_of_text_is_added_as_the_file_or_its_kind_says(
    pre: str, keys: dict[str, Any], begins: bool
) -> None:
    tokenizer = from_gguf(byte_level(pre, **keys))
    plain = tokenizer.encode("the fox", add_special_tokens=False)
    assert tokenizer.encode("the fox") == [1] * begins + plain


def test_a_beginning_of_text_that_is_written_is_not_added_again() -> None:
    tokenizer = from_gguf(byte_level(add_bos_token=True))
    assert tokenizer.encode("<|im_start|>the") == tokenizer.encode("the")
    twice = "<|im_start|><|im_start|>the"
    assert tokenizer.encode(twice)[:3] == [1, 1, tokenizer.encode("the")[1]]


def test_two_beginnings_that_are_written_stay_where_none_is_added() -> None:
    tokenizer = from_gguf(byte_level(add_bos_token=False))
    assert tokenizer.encode("<|im_start|><|im_start|>the")[:2] == [1, 1]


def test_an_end_of_text_is_added_where_the_file_asks() -> None:
    tokenizer = from_gguf(byte_level(add_eos_token=True, add_bos_token=True))
    plain = tokenizer.encode("the", add_special_tokens=False)
    assert tokenizer.encode("the") == [1, *plain, 0]


def test_end_tokens_are_those_named_and_the_turn_ends_of_the_template() -> None:
    assert from_gguf(byte_level()).eos_ids == {0}
    assert from_gguf(byte_level(eot_token_id=2)).eos_ids == {0, 2}
    template = {"tokenizer.chat_template": tiny.CHATML}
    assert from_gguf(byte_level() | template).eos_ids == {0, 2}


def test_accents_are_composed_for_qwen2() -> None:
    tokenizer = from_gguf(byte_level("qwen2"))
    assert tokenizer.encode("cafe\u0301") == tokenizer.encode("caf\u00e9")


def test_unused_tokens_add_nothing_and_are_not_recognised() -> None:
    metadata = byte_level()
    metadata["tokenizer.ggml.token_type"][-1] = 5
    tokenizer = from_gguf(metadata)
    assert tokenizer.token_bytes(tokenizer.vocab_size - 1) == b""
    assert tokenizer.vocab_size - 1 not in tokenizer.encode("<tool> ")


def test_ids_that_the_vocabulary_lacks_add_nothing() -> None:
    tokenizer = from_gguf(byte_level())
    ids = tokenizer.encode("the fox")
    assert tokenizer.decode([*ids, tokenizer.vocab_size, -1]) == "the fox"


def test_half_of_a_surrogate_pair_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="surrogate"):
        from_gguf(byte_level()).encode("a\ud800")


def test_sentencepiece_writes_unknown_characters_as_bytes() -> None:
    tokenizer = from_gguf(tiny.sentencepiece_metadata())
    ids = tokenizer.encode("\U0001f980", add_special_tokens=False)
    added = [tokenizer.token_bytes(token) for token in ids]
    assert added[-4:] == [b"\xf0", b"\x9f", b"\xa6", b"\x80"]
    assert tokenizer.decode(ids[:-1]) == "\ufffd"


def test_sentencepiece_drops_the_one_space_that_it_put_first() -> None:
    tokenizer = from_gguf(tiny.sentencepiece_metadata())
    ids = tokenizer.encode(" the", add_special_tokens=False)
    assert b"".join(map(tokenizer.token_bytes, ids)) == b"  the"
    assert tokenizer.decode(ids) == " the"


def test_the_text_of_a_byte_token_is_not_that_byte() -> None:
    tokenizer = from_gguf(tiny.sentencepiece_metadata())
    assert tokenizer.decode(tokenizer.encode("<0x41>")) == "<0x41>"


@pytest.mark.parametrize("kind", ["bert", "t5", None])
def test_an_unknown_kind_of_vocabulary_is_refused(kind: str | None) -> None:
    with pytest.raises(UnsupportedModel, match=f"{kind!r}.*gpt2, llama"):
        from_gguf(byte_level(model=kind))


def test_an_unknown_way_to_split_is_refused() -> None:
    with pytest.raises(UnsupportedModel, match=r"'default'.*smollm"):
        from_gguf(byte_level("default"))


def test_a_prefix_space_for_bytes_is_refused_and_not_left_out() -> None:
    with pytest.raises(UnsupportedModel, match="add_space_prefix"):
        from_gguf(byte_level(add_space_prefix=True))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"tokens": None}, "tokens to be a list of type str, found None"),
        ({"tokens": []}, "tokens.*found 0"),
        ({"tokens": ["a", 1]}, r"tokens .* found \['a', 1\]"),
        ({"tokens": ["x" * 513]}, "at most 512 characters, found one of 513"),
        ({"token_type": "normal"}, "token_type to be a list of type int"),
        ({"tokens": ["a", "a"], "token_type": [1, 1]}, "2, 1 of them different"),
        ({"token_type": [1]}, "token_type to be .* entries.*found 1"),
        ({"merges": None}, "merges to be a list of type str, found None"),
        ({"merges": ["nospace"]}, "merges to be pairs of tokens"),
        ({"merges": ["no such"]}, "merges.*out of vocabulary"),
        ({"eos_token_id": "2"}, "eos_token_id to be an id below"),
        ({"add_bos_token": "yes"}, "add_bos_token to be true or false"),
        ({"eos_token_id": 70000}, "eos_token_id to be an id below.*found 70000"),
    ],
)
def test_keys_that_do_not_fit_are_named_with_the_file(
    keys: dict[str, Any], message: str
) -> None:
    with pytest.raises(BrokenCheckpoint, match=f"tiny.gguf.*{message}"):
        from_gguf(byte_level(**keys), file="tiny.gguf")


def test_a_sentencepiece_vocabulary_needs_a_score_for_each_token() -> None:
    with pytest.raises(BrokenCheckpoint, match=r"scores to be .* found 1"):
        from_gguf(tiny.sentencepiece_metadata(scores=[0.5]))
