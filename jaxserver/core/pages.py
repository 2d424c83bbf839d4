"""Who holds which page of the cache, as a value."""

import collections
import dataclasses
from collections.abc import Iterable


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PagePool:
    """Pages and how many references each has; a page without one is free."""

    references: tuple[int, ...]

    @classmethod
    def empty(cls, num_pages: int) -> "PagePool":
        return cls(references=(0,) * num_pages)

    def free(self, below: int) -> list[int]:
        """The free pages with a number less than `below`, lowest first."""
        return [page for page, count in enumerate(self.references[:below]) if not count]

    def take(self, pages: Iterable[int]) -> "PagePool":
        """Gives out free pages, with one reference each.

        Raises:
            ValueError: One of them is not free.
        """
        return self._add(pages, 1, held=False)

    def share(self, pages: Iterable[int]) -> "PagePool":
        """Adds a reference to pages that have one.

        Raises:
            ValueError: One of them is free.
        """
        return self._add(pages, 1, held=True)

    def release(self, pages: Iterable[int]) -> "PagePool":
        """Takes a reference back from each; a page is free after its last.

        Raises:
            ValueError: One of them is free already.
        """
        return self._add(pages, -1, held=True)

    def _add(self, pages: Iterable[int], change: int, *, held: bool) -> "PagePool":
        references = list(self.references)
        for page, times in collections.Counter(pages).items():
            is_right = references[page] >= times if held else not references[page]
            if not is_right or (not held and times > 1):
                state = "has too few references" if held else "is not free"
                raise ValueError(f"page {page} {state}")
            references[page] += change * times
        return PagePool(references=tuple(references))
