"""The answers of an independent implementation to two chats; see `reference/README`."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxserver import Message

TOLERANCE = 1e-3
"""Between float32 log-probabilities of two implementations."""
_FILE = Path(__file__).parent.parent / "reference" / "smollm2_greedy.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reference:
    """One chat and its greedy answer of at most 64 tokens."""

    prompt: str
    prompt_text: str
    prompt_ids: tuple[int, ...]
    ids: tuple[int, ...]
    text: str
    logprobs: tuple[float, ...]

    @property
    def messages(self) -> list[Message]:
        return [Message(role="user", content=self.prompt)]

    def assert_logprobs(self, found: Sequence[float]) -> None:
        np.testing.assert_allclose(found, self.logprobs, rtol=0, atol=TOLERANCE)


def _read(item: dict[str, object]) -> Reference:
    (message,) = item["messages"]  # type: ignore[misc]  # one user message each
    return Reference(
        prompt=message["content"],  # type: ignore[has-type]  # a JSON object
        prompt_text=str(item["prompt_text"]),
        prompt_ids=tuple(item["prompt_ids"]),  # type: ignore[arg-type]  # a list
        ids=tuple(item["greedy_ids"]),  # type: ignore[arg-type]  # a list
        text=str(item["greedy_text"]),
        logprobs=tuple(item["greedy_logprobs"]),  # type: ignore[arg-type]  # a list
    )


REFERENCES = [_read(item) for item in json.loads(_FILE.read_text())["items"]]
