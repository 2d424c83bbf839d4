import pytest

from jaxserver.adapters.tokenizers.splits import SPLITS, split_named
from jaxserver.ports.errors import UnsupportedModel


def pieces(name: str, text: str) -> list[str]:
    split = split_named(name).pre_tokenizer().pre_tokenize_str(text)
    return [piece.replace("\u0120", " ").replace("\u010a", "\n") for piece, _ in split]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gpt-2", ["it", "'", "S", " 12345", " ok", "!!", "\n", "\n", "x"]),
        ("smollm", ["it", "'", "S", " ", *"12345", " ok", "!!", "\n", "\n", "x"]),
        ("llama-bpe", ["it", "'S", " ", "123", "45", " ok", "!!\n\n", "x"]),
        ("qwen2", ["it", "'S", " ", *"12345", " ok", "!!\n\n", "x"]),
    ],
)
def test_each_name_splits_its_own_way(name: str, expected: list[str]) -> None:
    text = "it'S 12345 ok!!\n\nx"
    split = pieces(name, text)
    assert "".join(split) == text
    assert split == expected


@pytest.mark.parametrize("name", ["default", "tekken", "", None])
def test_an_unknown_split_is_refused_with_the_known_ones(name: str | None) -> None:
    with pytest.raises(UnsupportedModel) as refusal:
        split_named(name)
    assert repr(name) in str(refusal.value)
    assert all(known in str(refusal.value) for known in SPLITS)
