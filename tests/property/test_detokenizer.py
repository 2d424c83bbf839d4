"""Text comes out the same however its bytes are split, and stop strings stay in."""

import itertools
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from jaxserver.core.detokenizer import TextState, add, finish

ALPHABET = "ab\n é€🙂\ufffd"
TEXTS = st.text(ALPHABET)
BYTES = st.one_of(st.binary(), TEXTS.map(str.encode), st.text().map(str.encode))
STOPS = st.lists(st.text("ab€🙂", min_size=1, max_size=4), max_size=4)


@st.composite
def splits(draw: st.DrawFn, data: st.SearchStrategy[bytes]) -> list[bytes]:
    """Bytes, as tokens of any length; some tokens have none."""
    whole = draw(data)
    cuts = sorted(draw(st.lists(st.integers(0, len(whole)), max_size=8)))
    if draw(st.booleans()):
        cuts = list(range(1, len(whole)))
    bounds = [0, *cuts, len(whole)]
    return [whole[a:b] for a, b in itertools.pairwise(bounds)]


def given_out(tokens: Sequence[bytes], stops: Sequence[str]) -> list[str]:
    """The text that every token brings, and what is left at the end."""
    state, texts = TextState(), []
    for token in tokens:
        piece = add(state, token, stops)
        texts.append(piece.text)
        if piece.is_stopped:
            return texts
        state = piece.state
    return [*texts, finish(state, stops)]


def before_stop(text: str, stops: Sequence[str]) -> str:
    """Letter by letter: the text before the first stop string that is complete."""
    for end in range(len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            return text[: end - max(map(len, ending))]
    return text


@given(tokens=splits(BYTES))
def test_any_split_of_any_bytes_equals_decoding_at_once(tokens: list[bytes]) -> None:
    expected = b"".join(tokens).decode(errors="replace")
    assert "".join(given_out(tokens, [])) == expected


@given(tokens=splits(st.text("ab€🙂").map(str.encode) | BYTES), stops=STOPS)
def test_an_answer_ends_before_its_first_stop_string_however_it_is_split(
    tokens: list[bytes], stops: list[str]
) -> None:
    expected = before_stop(b"".join(tokens).decode(errors="replace"), stops)
    assert "".join(given_out(tokens, stops)) == expected


@given(tokens=splits(TEXTS.map(str.encode)), stops=STOPS)
def test_nothing_is_held_back_that_cannot_begin_a_stop_string(
    tokens: list[bytes], stops: list[str]
) -> None:
    state = TextState()
    for token in tokens:
        piece = add(state, token, stops)
        if piece.is_stopped:
            return
        state = piece.state
        assert len(state.pending) < 4
        assert not state.held or any(stop.startswith(state.held) for stop in stops)
