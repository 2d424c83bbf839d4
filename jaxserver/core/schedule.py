"""What the scheduler knows and what it decides, as plain values."""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple, TypeAlias

from jaxserver.core.chunks import ChunkSeconds
from jaxserver.core.page_cache import PageCache, PageCopy
from jaxserver.core.prefix_tree import Tokens


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class QueuedRequest:
    """A request as far as the scheduler needs to know it.

    Attributes:
        tokens: The prompt, and what is known of the answer.
        limit: Most tokens that its row will hold.
        streaming: Somebody reads along.
        priority: Lower is sooner.
        queued_seconds: When it came.
        deadline: When nobody wants the answer any more.
        num_drawn: How many of the tokens are of the answer.
        unread: Dispatches that name it and have not been read.
        ahead: Tokens that those choose at most.
        attempts: Dispatches with it that failed.
        scored: The log-probabilities of its prompt are wanted and not known yet.
    """

    request_id: int
    tokens: Tokens
    limit: int
    streaming: bool
    priority: int = 0
    queued_seconds: float = 0.0
    deadline: float | None = None
    num_drawn: int = 0
    unread: int = 0
    ahead: int = 0
    attempts: int = 0
    scored: bool = False

    @property
    def prompt_length(self) -> int:
        return len(self.tokens) - self.num_drawn


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RunningRequest:
    """A request in its slot.

    Attributes:
        pages: Those of its row, in order.
        wanted: How many tokens are prefilled before it decodes.
        found: How many of them were there when it got its slot.
        prefilled: How many of them were found or have been dispatched.
        stored: How many of those are known to be in the cache.
        copy: What has to be copied before the first of them is run.
        is_begun: The first of them has been dispatched.
    """

    request: QueuedRequest
    slot: int
    pages: tuple[int, ...]
    wanted: int
    found: int = 0
    prefilled: int = 0
    stored: int = 0
    copy: PageCopy | None = None
    is_begun: bool = False

    @property
    def is_decoding(self) -> bool:
        return self.prefilled == self.wanted


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerState:
    """All requests that are not finished, and the pages.

    Attributes:
        waiting: In order of arrival.
        running: In order of admission.
        step_seconds: How long a decode step took lately; 0 before the first.
        chunk_seconds: How long a prefill of each padded length took lately, by depth.
        stalled_seconds: How long running answers have to wait for the prefills since
            the last decode block, by what is known of such; 0 after one. What is not
            known counts as the longest that one of a long prompt may be.
        num_hits: Admissions that found a part of their prompt.
        num_preempted: Requests that had to give up their pages.
    """

    cache: PageCache
    waiting: tuple[QueuedRequest, ...] = ()
    running: tuple[RunningRequest, ...] = ()
    step_seconds: float = 0.0
    chunk_seconds: ChunkSeconds = dataclasses.field(default_factory=dict)
    stalled_seconds: float = 0.0
    num_hits: int = 0
    num_preempted: int = 0

    @property
    def requests(self) -> tuple[QueuedRequest, ...]:
        """All of them, those that run first."""
        return (*(running.request for running in self.running), *self.waiting)


class Seated(NamedTuple):
    """What a request finds in its pages when it gets its slot.

    Attributes:
        held: Tokens that are there, once `copy` is done.
    """

    held: Tokens
    copy: PageCopy | None


class Chunk(NamedTuple):
    """The next piece of one prompt to prefill.

    Attributes:
        tokens: Those to run.
        is_last: The prompt ends with it.
        pages: Those of its row.
        seat: Where the request has just got its slot, what it was given.
        targets: The tokens after each of `tokens`, of which the last may be missing,
            where they are scored.
    """

    request_id: int
    slot: int
    start: int
    tokens: Tokens
    is_last: bool
    pages: tuple[int, ...]
    seat: Seated | None
    targets: Tokens | None = None

    @property
    def length(self) -> int:
        return len(self.tokens)


class PrefillPlan(NamedTuple):
    """Chunks to run together, padded to `time` tokens."""

    chunks: tuple[Chunk, ...]
    time: int

    @property
    def is_scored(self) -> bool:
        """The log-probabilities of some of the tokens are wanted."""
        return any(chunk.targets is not None for chunk in self.chunks)

    @property
    def request_ids(self) -> tuple[int, ...]:
        """Of each row."""
        return tuple(chunk.request_id for chunk in self.chunks)


class DecodePlan(NamedTuple):
    """A block of decode steps over the slots below `rows`.

    Attributes:
        requests: Which request is in which slot.
        num_tokens: How many each chooses at most.
        pages: Those of each of these rows, by slot.
    """

    requests: Mapping[int, int]
    rows: int
    num_tokens: int
    pages: Mapping[int, tuple[int, ...]]

    @property
    def request_ids(self) -> tuple[int, ...]:
        return tuple(self.requests.values())


Plan: TypeAlias = PrefillPlan | DecodePlan


class Outcome(NamedTuple):
    """What a dispatch did.

    Attributes:
        drawn: The tokens chosen for each request that is still wanted.
        finished: Requests that ended.
        unsound: Requests whose logits were no numbers.
        steps: Decode steps run; 0 for a prefill.
        seconds: How long it took.
    """

    drawn: Mapping[int, Tokens]
    finished: frozenset[int]
    unsound: frozenset[int]
    steps: int
    seconds: float
