from jaxserver.core.detokenizer import Piece, TextState, add, finish


def texts(*tokens: bytes, stops: tuple[str, ...] = ()) -> list[str]:
    state, found = TextState(), []
    for token in tokens:
        piece = add(state, token, stops)
        found.append(piece.text)
        state = piece.state
    return [*found, finish(state, stops)]


def test_a_character_waits_for_its_last_byte() -> None:
    euro = "€".encode()
    assert texts(euro[:1], euro[1:2], euro[2:] + b"!") == ["", "", "€!", ""]


def test_a_character_that_stays_unfinished_becomes_a_replacement_character() -> None:
    assert texts(b"a\xe2\x82") == ["a", "\ufffd"]
    assert texts(b"a\xe2\x82", b"b") == ["a", "\ufffdb", ""]


def test_text_that_could_begin_a_stop_string_is_held() -> None:
    assert texts(b"go E", b"N", b"d", stops=("END",)) == ["go ", "", "ENd", ""]


def test_held_text_is_given_out_when_nothing_follows() -> None:
    assert texts(b"the E", b"N", stops=("END",)) == ["the ", "", "EN"]


def test_a_stop_string_is_found_across_tokens_and_characters() -> None:
    euro = "€".encode()
    first = add(TextState(), b"1 " + euro[:2], ("€€",))
    second = add(first.state, euro[2:] + euro, ("€€",))
    assert (first.text, second.text, second.is_stopped) == ("1 ", "", True)


def test_text_after_a_stop_string_is_dropped() -> None:
    assert add(TextState(), b"one STOP two", ("STOP",)) == Piece(
        "one ", True, TextState()
    )


def test_of_two_stop_strings_the_one_complete_first_counts() -> None:
    assert add(TextState(), b"abcX", ("abcX", "bc")).text == "a"
    assert add(TextState(), b"abc", ("bc", "abc")).text == ""


def test_an_unfinished_character_can_complete_a_stop_string() -> None:
    stops = ("a\ufffd",)
    piece = add(TextState(), b"xa\xe2", stops)
    assert (piece.text, finish(piece.state, stops)) == ("x", "")


def test_one_leading_space_is_stripped_where_the_tokenizer_adds_one() -> None:
    state = TextState(strips_space=True)
    special = add(state, b"", ())
    first = add(special.state, b"  Hi", ())
    second = add(first.state, b" you", ())
    assert [special.text, first.text, second.text] == ["", " Hi", " you"]
