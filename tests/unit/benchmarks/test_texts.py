"""Texts differ, are about as long as asked for, and the same every time."""

import ast
import itertools

import pytest

from benchmarks.texts import TEXTS, edits


@pytest.mark.parametrize("kind", TEXTS)
def test_texts_differ_and_are_the_same_every_time(kind: str) -> None:
    first = list(itertools.islice(TEXTS[kind](64, 0), 20))
    assert len(set(first)) == 20
    assert list(itertools.islice(TEXTS[kind](64, 0), 20)) == first
    assert list(itertools.islice(TEXTS[kind](64, 5), 15)) == first[5:]


def test_enough_functions_of_a_size_are_there_to_be_edited() -> None:
    texts = list(edits(128))
    assert len(texts) > 200
    for text in texts:
        wish, code = text.split("\n\n", 1)
        assert wish.startswith("Write this function again, named ")
        assert isinstance(ast.parse(code).body[0], ast.FunctionDef)
        assert 320 < len(code) < 480
