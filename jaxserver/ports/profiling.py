"""The port that watches what the devices do for a while."""

import threading
from typing import Protocol


class Profiler(Protocol):
    """Takes one profile at a time."""

    def capture(self, seconds: float, cancelled: threading.Event) -> bytes:
        """Waits while it watches; the files of the trace, in a zip archive.

        Args:
            seconds: How long to watch.
            cancelled: Ends it sooner once it is set.

        Raises:
            ProfileRunning: One is being taken already.
        """
        ...
