"""The pages of the cache together with what is known of them from earlier rows."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

from jaxserver.core.pages import PagePool
from jaxserver.core.prefix_tree import PrefixTree, Tokens


class PageCopy(NamedTuple):
    """The first `length` tokens of one page are to be copied to another."""

    source: int
    target: int
    length: int


class Seat(NamedTuple):
    """Pages for a row.

    Attributes:
        pages: In order.
        held: Tokens whose keys and values are in them, once `copy` is done.
    """

    pages: tuple[int, ...]
    held: int
    copy: PageCopy | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PageCache:
    """Pages that rows hold, and pages that are kept because their tokens may come back.

    The tree has a reference to each of its pages, and a row one to each of its own. A
    full page is shared; of a page that matches in part the part is copied, unless the
    row may have the page itself.
    """

    pool: PagePool
    tree: PrefixTree

    @classmethod
    def empty(cls, num_pages: int, page_size: int) -> "PageCache":
        pool, tree = PagePool.empty(num_pages), PrefixTree.empty(page_size)
        return cls(pool=pool, tree=tree)

    @property
    def num_used(self) -> int:
        """Pages that rows hold."""
        in_tree = self.tree.nodes
        references = enumerate(self.pool.references)
        return sum(count > (page in in_tree) for page, count in references)

    def seat(
        self, tokens: Tokens, num_pages: int, *, below: int, grid: int
    ) -> tuple[Seat, "PageCache"] | None:
        """Finds pages for a row that begins with some tokens; None where too few are.

        Args:
            tokens: What may be taken from the tree.
            num_pages: How many the row needs.
            below: The numbers that pages of its own may have are less.
            grid: Tokens are taken from the tree by so many.
        """
        length = self.tree.match(tokens).length // grid * grid
        match = self.tree.match(tokens[:length])
        num_full, rest = divmod(length, self.tree.page_size)
        full, room = match.pages[:num_full], (num_pages - num_full, below)
        seated = None
        if rest:
            seated = self._seat_on_part(full, match.pages[-1], room, length)
        if seated is None:
            # Without the part, or a page that it keeps from going might be missing.
            pinned = dataclasses.replace(self, pool=self.pool.share(full))
            taken = pinned._take(*room)
            whole = num_full * self.tree.page_size
            seated = taken and _seated(full, taken, whole, None)
        return seated

    def _seat_on_part(
        self, full: tuple[int, ...], page: int, room: tuple[int, int], length: int
    ) -> tuple[Seat, "PageCache"] | None:
        """Pages for a row of which the last one that is found matches in part."""
        _, below = room
        pinned = dataclasses.replace(self, pool=self.pool.share((*full, page)))
        if not self._is_spare(page, below):
            return pinned._copied(full, page, room, length)
        is_whole = len(self.tree.nodes[page].tokens) == length % self.tree.page_size
        copied = None if is_whole else pinned._copied(full, page, room, length)
        return copied or pinned._taken_over(full, page, room, length)

    def _is_spare(self, page: int, below: int) -> bool:
        """Whether a row may have a page of the tree and write behind what it keeps."""
        is_held = self.pool.references[page] > 1
        return page < below and not is_held and not self.tree.nodes[page].children

    def _copied(
        self, full: tuple[int, ...], page: int, room: tuple[int, int], length: int
    ) -> tuple[Seat, "PageCache"] | None:
        taken = self._take(*room)
        if taken is None:
            return None
        pages, cache = taken
        copy = PageCopy(page, pages[0], length % self.tree.page_size)
        return _seated(full, (pages, cache._release((page,))), length, copy)

    def _taken_over(
        self, full: tuple[int, ...], page: int, room: tuple[int, int], length: int
    ) -> tuple[Seat, "PageCache"] | None:
        count, below = room
        taken = self._dropped([page])._take(count - 1, below)
        return taken and _seated((*full, page), taken, length, None)

    def grow(
        self, pages: tuple[int, ...], num_pages: int, below: int
    ) -> tuple[tuple[int, ...], "PageCache"] | None:
        """A row's pages and as many more as it needs; None where too few are left."""
        taken = self._take(max(0, num_pages - len(pages)), below)
        return taken and ((*pages, *taken[0]), taken[1])

    def _take(
        self, count: int, below: int
    ) -> tuple[tuple[int, ...], "PageCache"] | None:
        free = self.pool.free(below)
        cache, missing = self, count - len(free)
        if missing > 0:
            dropped = self.tree.least_used(missing, self._may_go(below))
            if len(dropped) < missing:
                return None
            cache = self._dropped(dropped)
            free = cache.pool.free(below)
        pages = tuple(free[:count])
        return pages, dataclasses.replace(cache, pool=cache.pool.take(pages))

    def _may_go(self, below: int) -> Callable[[int], bool]:
        references = self.pool.references
        return lambda page: page < below and references[page] == 1

    def _dropped(self, pages: list[int]) -> "PageCache":
        tree = self.tree
        for page in pages:
            tree = tree.drop(page)
        return PageCache(pool=self.pool.release(pages), tree=tree)

    def _release(self, pages: tuple[int, ...]) -> "PageCache":
        return dataclasses.replace(self, pool=self.pool.release(pages))

    def store(self, tokens: Tokens, pages: tuple[int, ...]) -> "PageCache":
        """Keeps what a row's pages hold for others, as long as there is room."""
        tree = self.tree.store(tokens, pages)
        new = tree.nodes.keys() - self.tree.nodes.keys()
        return PageCache(pool=self.pool.share(new), tree=tree)

    def leave(self, pages: tuple[int, ...], *, is_sound: bool = True) -> "PageCache":
        """Takes a row's pages back; what an unsound one wrote is forgotten."""
        cache = self._release(pages)
        while not is_sound:
            bad = [page for page in pages if cache._is_forgettable(page)]
            if not bad:
                break
            cache = cache._dropped(bad)
        return cache

    def _is_forgettable(self, page: int) -> bool:
        node = self.tree.nodes.get(page)
        return (
            node is not None and not node.children and self.pool.references[page] == 1
        )


def _seated(
    full: tuple[int, ...],
    taken: tuple[tuple[int, ...], PageCache],
    held: int,
    copy: PageCopy | None,
) -> tuple[Seat, PageCache]:
    pages, cache = taken
    return Seat((*full, *pages), held, copy), cache
