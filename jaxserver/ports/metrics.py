"""The port that writes a server's numbers down for those who watch it."""

from typing import Protocol


class Metrics(Protocol):
    """Counts, sizes and times of one server."""

    @property
    def content_type(self) -> str:
        """The form of what `scrape` returns, as HTTP names it."""
        ...

    def scrape(self) -> bytes:
        """All of them at this moment; may take milliseconds."""
        ...
