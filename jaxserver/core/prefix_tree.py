"""Which pages hold the keys and values of which tokens: a radix tree over pages.

The edges from the root down spell the tokens that rows began with, a page an edge. Only
a full page is followed by others, so that a page says all about the tokens in it.
"""

import bisect
import dataclasses
import heapq
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

ROOT = -1
Tokens = tuple[int, ...]


class Node(NamedTuple):
    """One page in the tree.

    Attributes:
        tokens: Those whose keys and values the page holds, from its first place on.
        parent: The page before it.
        children: The pages that follow it.
        used: When it was last of use, by the tree's own count.
    """

    tokens: Tokens
    parent: int
    children: tuple[int, ...] = ()
    used: int = 0


class Match(NamedTuple):
    """What is there of some tokens.

    Attributes:
        pages: Those that hold all of it, in order; of the last one a part may be meant.
        length: How many tokens that is.
    """

    pages: tuple[int, ...]
    length: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PrefixTree:
    """The tree, as a value; every page in it is there once.

    Attributes:
        nodes: By page, and the root.
        clock: Counts what was stored.
    """

    page_size: int
    nodes: Mapping[int, Node]
    clock: int = 0

    @classmethod
    def empty(cls, page_size: int) -> "PrefixTree":
        return cls(page_size=page_size, nodes={ROOT: Node((), ROOT)})

    @property
    def num_pages(self) -> int:
        return len(self.nodes) - 1

    def match(self, tokens: Tokens) -> Match:
        """The longest beginning of the tokens that is there."""
        pages: list[int] = []
        length, at = 0, ROOT
        while True:
            part = tokens[length : length + self.page_size]
            page, count = self._best(at, part)
            if not count:
                return Match(tuple(pages), length)
            pages.append(page)
            length += count
            if count < self.page_size:
                return Match(tuple(pages), length)
            at = page

    def _best(self, parent: int, part: Tokens) -> tuple[int, int]:
        """The child that shares most with some tokens, the one with least besides."""
        best, key = ROOT, (0, 0)
        for page in self.nodes[parent].children:
            held = self.nodes[page].tokens
            new_key = (common_length(held, part), -len(held))
            if new_key[0] and new_key > key:
                best, key = page, new_key
        return best, key[0]

    def store(self, tokens: Tokens, pages: Sequence[int]) -> "PrefixTree":
        """Adds the pages that hold some tokens, but for what is there already."""
        nodes, clock = dict(self.nodes), self.clock + 1
        at = ROOT
        for nth in range(-(-len(tokens) // self.page_size)):
            part = tokens[nth * self.page_size : (nth + 1) * self.page_size]
            page = pages[nth]
            there = _covering(nodes, at, part, page)
            if there is not None:
                nodes[there] = nodes[there]._replace(used=clock)
                at = there
                continue
            if page in nodes:
                nodes[page] = nodes[page]._replace(tokens=part, used=clock)
            else:
                nodes[page] = Node(part, at, used=clock)
                parent = nodes[at]
                nodes[at] = parent._replace(children=(*parent.children, page))
            at = page
        return dataclasses.replace(self, nodes=nodes, clock=clock)

    def drop(self, page: int) -> "PrefixTree":
        """Forgets a page that no other follows.

        Raises:
            ValueError: One does.
        """
        node = self.nodes[page]
        if node.children:
            raise ValueError(f"page {page} is followed by others")
        nodes = dict(self.nodes)
        _remove(nodes, page)
        return dataclasses.replace(self, nodes=nodes)

    def least_used(self, count: int, may_go: Callable[[int], bool]) -> list[int]:
        """Up to `count` pages to drop in this order, those unused for longest first."""
        children = {page: len(node.children) for page, node in self.nodes.items()}
        heap = [
            (self.nodes[page].used, page)
            for page, left in children.items()
            if page != ROOT and not left and may_go(page)
        ]
        heapq.heapify(heap)
        found: list[int] = []
        while heap and len(found) < count:
            _, page = heapq.heappop(heap)
            found.append(page)
            parent = self.nodes[page].parent
            children[parent] -= 1
            if parent != ROOT and not children[parent] and may_go(parent):
                heapq.heappush(heap, (self.nodes[parent].used, parent))
        return found


def _covering(
    nodes: Mapping[int, Node], parent: int, part: Tokens, page: int
) -> int | None:
    """A page below `parent` that holds these tokens, `page` itself before others."""
    children = nodes[parent].children
    ordered = (page, *children) if page in children else children
    for child in ordered:
        if nodes[child].tokens[: len(part)] == part:
            return child
    return None


def _remove(nodes: dict[int, Node], page: int) -> None:
    parent = nodes.pop(page).parent
    above = nodes[parent]
    rest = tuple(child for child in above.children if child != page)
    nodes[parent] = above._replace(children=rest)


def common_length(left: Tokens, right: Tokens) -> int:
    """How many tokens two sequences begin with alike."""
    longest = min(len(left), len(right))
    if left[:longest] == right[:longest]:
        return longest
    return bisect.bisect_left(
        range(1, longest), True, key=lambda count: left[:count] != right[:count]
    )
