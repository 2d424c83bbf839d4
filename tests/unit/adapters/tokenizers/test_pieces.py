import pytest
from tokenizers import pre_tokenizers

from jaxserver.adapters.tokenizers.pieces import BYTE_OF_CHARACTER, PieceReader


def test_every_byte_has_the_character_that_the_library_gives_it() -> None:
    assert set(BYTE_OF_CHARACTER) == set(pre_tokenizers.ByteLevel.alphabet())
    assert sorted(BYTE_OF_CHARACTER.values()) == list(range(256))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    for text in ("\x00\x7f \n", "\u00e9\u00ad", "\u65e5\U0001f642"):
        ((written, _),) = byte_level.pre_tokenize_str(text)
        assert PieceReader(is_byte_level=True).read(written) == text.encode()


@pytest.mark.parametrize(
    ("reader", "token", "added"),
    [
        (PieceReader(is_byte_level=True), "\u0120a", b" a"),
        (PieceReader(is_byte_level=True), "\u65e5", "\u65e5".encode()),
        (PieceReader(replacements=(("\u2581", " "),)), "\u2581a\u2581", b" a "),
        (PieceReader(has_byte_tokens=True), "<0xFf>", b"\xff"),
        (PieceReader(), "<0xFF>", b"<0xFF>"),
        (PieceReader(word_prefix="##"), "##s", b"s"),
        (PieceReader(word_prefix="##"), ".", b" ."),
        (PieceReader(word_prefix="##", cleans_up=True), ".", b"."),
    ],
)
def test_a_token_adds_what_its_vocabulary_wrote_down(
    reader: PieceReader, token: str, added: bytes
) -> None:
    assert reader.read(token) == added


def test_an_added_token_among_bytes_is_written_as_it_is() -> None:
    assert PieceReader(is_byte_level=True).read_added("\u00e9") == "\u00e9".encode()
