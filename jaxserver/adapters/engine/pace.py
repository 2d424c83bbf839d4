"""How fast tokens have been served lately, to say when to come again."""

import collections
import math

RECENT = 64
"""Answers that are looked back on."""
LONGEST_SECONDS = 60


class Pace:
    """Written and read by different threads, each with one operation."""

    def __init__(self) -> None:
        self._served: collections.deque[tuple[float, int]] = collections.deque(
            maxlen=RECENT
        )

    def note(self, now: float, tokens: int) -> None:
        """An answer has ended, with so many tokens of prompt and answer."""
        self._served.append((now, tokens))

    def seconds_for(self, tokens: int, now: float) -> int:
        """How long so many tokens take, from 1 second to a minute."""
        served = tuple(self._served)
        total = sum(count for _, count in served)
        if not total or not tokens:
            return 1
        seconds = tokens * max(0.0, now - served[0][0]) / total
        return max(1, min(LONGEST_SECONDS, math.ceil(seconds)))
