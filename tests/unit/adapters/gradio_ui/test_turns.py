"""A conversation keeps its words whatever form it takes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxserver.adapters.gradio_ui import turns
from jaxserver.ports.errors import InvalidRequest

SAID = st.text(min_size=1)


@given(history=st.lists(st.lists(SAID, min_size=2, max_size=2), max_size=4))
def test_pairs_come_back_from_the_browser_as_they_went(
    history: list[list[str]],
) -> None:
    assert turns.from_gradio(turns.to_gradio(history)) == history


def test_a_turn_without_an_answer_is_left_out() -> None:
    shown = turns.to_gradio([["a", "b"], ["c", ""]])
    assert turns.from_gradio(shown) == [["a", "b"]]
    assert turns.from_gradio(None) == []


def test_an_answer_is_kept_to_the_last_space() -> None:
    (_, answer) = turns.to_gradio([["a", "  b\n\tc \n"]])
    assert answer["content"] == [{"type": "text", "text": "  b\n\tc \n"}]


@pytest.mark.parametrize(
    ("history", "left", "prompt"),
    [
        ([["a", "b"], ["c", "d"]], [["a", "b"]], "c"),
        ([["a", "b"], ["c", ""]], [["a", "b"]], "c"),
        ([], [], ""),
    ],
)
def test_stepping_back_gives_the_last_prompt(
    history: list[list[str]], left: list[list[str]], prompt: str
) -> None:
    assert turns.without_last(turns.to_gradio(history)) == (left, prompt)


def test_the_last_turn_is_answered_once_it_has_text() -> None:
    assert turns.is_answered([["a", "b"]])
    assert not turns.is_answered([["a", ""]])
    assert not turns.is_answered([])


@pytest.mark.parametrize(
    "messages",
    [
        "text",
        [1],
        [{"role": "user", "content": 1}],
        [{"role": "user", "content": [{"type": "file", "file": {"path": "/x"}}]}],
        [{"role": "user", "content": None}],
    ],
)
def test_only_messages_of_text_are_taken(messages: object) -> None:
    with pytest.raises(InvalidRequest, match=r"^history: got "):
        turns.from_gradio(messages)


@pytest.mark.parametrize(
    "history", ["ab", [["a"]], [["a", 1]], ["ab"], [["a", "b", "c"]], {"a": "b"}]
)
def test_only_pairs_of_texts_are_taken_from_a_client(history: object) -> None:
    with pytest.raises(InvalidRequest, match=r"^history: got "):
        turns.checked_pairs(history)


def test_a_client_may_leave_the_history_out() -> None:
    assert turns.checked_pairs(None) == []
    assert turns.checked_pairs([("a", "b")]) == [["a", "b"]]
