"""Who holds which page of the cache, as a value."""

import dataclasses
from typing import NamedTuple


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PagePool:
    """Pages and how many references each has; a page without one is free."""

    references: tuple[int, ...]

    @classmethod
    def empty(cls, num_pages: int) -> "PagePool":
        return cls(references=(0,) * num_pages)

    @property
    def num_free(self) -> int:
        return self.references.count(0)

    def take(self) -> "Taken":
        """Gives out the lowest free page, with one reference.

        Raises:
            ValueError: There is none.
        """
        page = self.references.index(0)
        return Taken(page, self._add(page, 1))

    def share(self, page: int) -> "PagePool":
        """Adds a reference to a page that has one.

        Raises:
            ValueError: The page is free.
        """
        if self.references[page] == 0:
            raise ValueError(f"page {page} is free and cannot be shared")
        return self._add(page, 1)

    def release(self, page: int) -> "PagePool":
        """Takes a reference back; the page is free after the last.

        Raises:
            ValueError: The page is free already.
        """
        if self.references[page] == 0:
            raise ValueError(f"page {page} is free already")
        return self._add(page, -1)

    def _add(self, page: int, change: int) -> "PagePool":
        count = self.references[page] + change
        before, after = self.references[:page], self.references[page + 1 :]
        return PagePool(references=(*before, count, *after))


class Taken(NamedTuple):
    """A page, and the pool without it."""

    page: int
    pool: PagePool
