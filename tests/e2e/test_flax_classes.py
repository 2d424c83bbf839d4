"""Every class of transformers' two text mappings answers as it does by itself.

Greedy answers through the whole engine: alone, among rows of other lengths, a prompt in
one piece and in chunks. A few classes, or with `--every-class` all of them; each is a
row of the README's table, which `--update-golden` writes anew.
"""

import re
from pathlib import Path
from typing import Any

import pytest

import jaxserver
from tests.flax_answers import (
    POSITIONS,
    PROMPTS,
    VOCAB,
    assert_answers_are,
    chosen,
    generated,
    pieces_of,
    serving,
)
from tests.tiny_flax import CAUSAL, SEQ_TO_SEQ, TinyFlax, causal, seq_to_seq

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*is deprecated", "ignore:.*one_hot", "ignore:.*model-agnostic default"
)
FILE = Path(jaxserver.__file__).parents[1] / "README.md"
TITLE = "| model type | class | its rows | its answers are those of | chunks |\n"
EVERY = [("causal", kind) for kind in CAUSAL] + [
    ("seq_to_seq", kind) for kind in [*SEQ_TO_SEQ, "encoder-decoder"]
]
FEW = [("causal", "gpt2"), ("causal", "roberta"), ("seq_to_seq", "t5")]
GENERATE, ARGMAX = "its `generate`", "argmax over whole rows"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "kind" in metafunc.fixturenames:
        is_every = metafunc.config.getoption("--every-class")
        metafunc.parametrize("mapping,kind", EVERY if is_every else FEW)


def made(mapping: str, kind: str, **settings: Any) -> TinyFlax:
    if kind == "encoder-decoder":
        return seq_to_seq(kind)
    make = causal if mapping == "causal" else seq_to_seq
    return make(kind, vocab_size=VOCAB, **settings)


def test_greedy_answers_are_the_classes_own(
    mapping: str, kind: str, pytestconfig: pytest.Config
) -> None:
    tiny = made(mapping, kind)
    print(tiny.model.config.model_type, POSITIONS, PROMPTS)
    for f in (generated, chosen):
        try:
            r = [f(tiny, p) for p in PROMPTS]
        except Exception as e:
            r = repr(e)[:300]
        print(f, r)
    with serving(tiny) as server:
        expected = [chosen(tiny, p) for p in PROMPTS]
        print(pieces_of(server, PROMPTS[2]))
        assert_answers_are(server, expected)
