"""Waiting for what another thread, or another program, is about to do."""

import time
from collections.abc import Callable


def eventually(holds: Callable[[], object], seconds: float = 20.0) -> bool:
    """Waits until something holds, and says whether it ever did."""
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.001)
    return True
