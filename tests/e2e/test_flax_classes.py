"""Every class of transformers' two text mappings answers as it does by itself.

Greedy answers through the whole engine: alone, among rows of other lengths, a prompt in
one piece and in chunks. A few classes, or with `--every-class` all of them; each is a
row of the README's table, which `--update-golden` writes anew.
"""

from pathlib import Path
from typing import Any, NamedTuple

import jax
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
from tests.tiny_flax import CAUSAL, SEQ_TO_SEQ, TinyFlax, causal, longer, seq_to_seq

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*is deprecated",
    "ignore:.*one_hot",
    "ignore:.*model-agnostic default",
    "ignore:Some non-default generation parameters",
)
FILE = Path(jaxserver.__file__).parents[1] / "README.md"
TITLE = "| model type | class | a row is | a long prompt | its answers equal |\n"
EVERY = [("causal", kind) for kind in CAUSAL]
EVERY += [("seq_to_seq", kind) for kind in [*SEQ_TO_SEQ, "encoder-decoder"]]
FEW = [("causal", "gpt2"), ("seq_to_seq", "t5")]


class Own(NamedTuple):
    """How a class answers by itself."""

    named: str
    answer: Any


GENERATE = Own("its `generate`", generated)
ARGMAX = Own("argmax over whole rows", chosen)
WITHOUT_GENERATE = {
    # They keep no cache, on which `generate` relies.
    *("bert", "big_bird", "electra"),
    *("roberta", "roberta-prelayernorm", "xlm-roberta"),
    # It gives its encoder positions where it expects types, and answers NaN.
    "encoder-decoder",
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "kind" in metafunc.fixturenames:
        is_every = metafunc.config.getoption("--every-class")
        metafunc.parametrize(("mapping", "kind"), EVERY if is_every else FEW)


def made(mapping: str, kind: str, **settings: Any) -> TinyFlax:
    make = causal if mapping == "causal" else seq_to_seq
    # Roberta's first two positions are for padding.
    positions = longer(kind, POSITIONS + 2)
    tiny = make(kind, vocab_size=VOCAB, **positions, **settings)
    if mapping == "causal":
        return tiny
    # With small weights, what an encoder reads does not change an answer.
    doubled = jax.tree.map(lambda leaf: leaf * min(leaf.ndim, 2), tiny.params)
    return tiny._replace(params=doubled)


def own_answers(tiny: TinyFlax, mapping: str, kind: str) -> tuple[str, list[list[int]]]:
    """Whose answers they are, and the answers."""
    own = ARGMAX if kind in WITHOUT_GENERATE else GENERATE
    named, by_itself = own.named, tiny
    if kind == "mistral":  # the class sees one key more than its window, PyTorch not
        window = tiny.model.config.sliding_window - 1
        named += ", its window one less"
        by_itself = made(mapping, kind, sliding_window=window)._replace(
            params=tiny.params
        )
    return named, [own.answer(by_itself, prompt) for prompt in PROMPTS]


def test_greedy_answers_are_the_classes_own(
    mapping: str,
    kind: str,
    pytestconfig: pytest.Config,
    caplog: pytest.LogCaptureFixture,
) -> None:
    tiny = made(mapping, kind)
    named, expected = own_answers(tiny, mapping, kind)
    assert len({tuple(answer) for answer in expected}) > 1

    caplog.clear()
    with serving(tiny) as server:
        assert_answers_are(server, expected)
        calls = pieces_of(server, PROMPTS[-1])

    is_encoded = tiny.model.config.is_encoder_decoder
    assert (calls == 1) if is_encoded else (calls > 1)
    long = "whole" if is_encoded else "in chunks"
    is_rerun = "has no cache of its own" in caplog.text
    row = (
        "run again" if is_rerun else "encoded, then cached" if is_encoded else "cached"
    )
    name = type(tiny.model).__name__
    line = f"| {kind} | `{name}` | {row} | {long} | {named} |\n"
    if pytestconfig.getoption("--update-golden"):
        write(line)
    assert line in FILE.read_text()


def write(line: str) -> None:
    """Puts a row into the table, in the place of the one of its class."""
    begin = "|".join(line.split("|")[:3]) + "|"
    lines = FILE.read_text().splitlines(keepends=True)
    at = lines.index(TITLE) + 2
    kept = [old for old in table() if not old.startswith(begin)]
    FILE.write_text(
        "".join([*lines[:at], *sorted([*kept, line]), *lines[at + len(table()) :]])
    )


def table() -> list[str]:
    """The rows that the README has."""
    rows = FILE.read_text().split(TITLE)[1].split("\n\n")[0] + "\n"
    return rows.splitlines(keepends=True)[1:]


def test_every_class_of_the_two_mappings_has_a_row() -> None:
    from transformers.models.auto import modeling_flax_auto as auto  # noqa: PLC0415

    causal_classes = auto.FLAX_MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items()
    others = auto.FLAX_MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES.items()
    rows = [tuple(line.split(" | ")[:2]) for line in table()]
    expected = [(f"| {kind}", f"`{name}`") for kind, name in (*causal_classes, *others)]
    assert sorted(rows) == sorted(expected)
