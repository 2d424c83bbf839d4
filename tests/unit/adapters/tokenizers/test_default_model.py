"""The default model's tokenizer against ids and texts that transformers made."""

import json
from pathlib import Path
from typing import Any

import pytest

from jaxserver.adapters.checkpoints.locate import open_checkpoint
from jaxserver.adapters.tokenizers import from_gguf
from jaxserver.adapters.tokenizers.tokenizer import PieceTokenizer

REFERENCE = Path(__file__).parents[3] / "reference" / "smollm2_greedy.json"
ITEMS = json.loads(REFERENCE.read_text("utf-8"))["items"]


@pytest.fixture
def tokenizer(default_model_path: Path) -> PieceTokenizer:
    return from_gguf(open_checkpoint(default_model_path).config)


@pytest.mark.model
@pytest.mark.parametrize("item", ITEMS, ids=lambda item: item["greedy_text"][:12])
def test_prompts_and_answers_are_the_references(
    tokenizer: PieceTokenizer, item: dict[str, Any]
) -> None:
    text = item["prompt_text"]
    assert tokenizer.encode(text, add_special_tokens=False) == item["prompt_ids"]
    assert tokenizer.encode(text) == item["prompt_ids"]
    assert tokenizer.decode(item["greedy_ids"]) == item["greedy_text"]


@pytest.mark.model
def test_the_default_models_answers_end_with_their_turn(
    tokenizer: PieceTokenizer,
) -> None:
    assert tokenizer.eos_ids == {2}
    assert tokenizer.vocab_size == 49152
    assert not tokenizer.strips_leading_space
    assert tokenizer.token_bytes(2) == b""
