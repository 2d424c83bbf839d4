"""How a library that is compared is asked: a line of JSON in, a line of JSON out.

Run by another Python than ours, which knows nothing but its own library.
"""

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

Generate: TypeAlias = Callable[[Sequence[Sequence[int]], int], Any]
"""Continues prompts of one length, greedily, by so many tokens, and waits for them."""


def answer(make: Callable[[Mapping[str, Any]], Generate]) -> None:
    """Reads what the model is, then answers one line after the other.

    Args:
        make: From the model's description, what generates.
    """
    lines = (json.loads(line) for line in sys.stdin)
    generate = make(next(lines))
    say({"ready": True})
    for asked in lines:
        prompts, new_tokens = asked["prompts"], asked["new_tokens"]
        first_seconds = timed(generate, prompts, 1)
        seconds = timed(generate, prompts, new_tokens)
        say({"seconds": seconds, "first_seconds": first_seconds})


def timed(
    generate: Generate, prompts: Sequence[Sequence[int]], new_tokens: int
) -> float:
    began = time.perf_counter()
    generate(prompts, new_tokens)
    return time.perf_counter() - began


def say(content: Mapping[str, Any]) -> None:
    sys.stdout.write(json.dumps(content) + "\n")
    sys.stdout.flush()
