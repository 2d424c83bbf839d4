"""What the engine's thread counts."""

import dataclasses

from jaxserver.adapters.engine.dispatch import NOTHING, Arrival
from jaxserver.core.config import EngineConfig
from jaxserver.core.lanes import Lanes


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LoopStats:
    """Counts that other threads may read at any time."""

    dispatches: int = 0
    failed_dispatches: int = 0
    unsound_rows: int = 0
    slots_in_use: int = 0
    queue_length: int = 0
    queued_tokens: int = 0
    prefix_hits: int = 0
    preemptions: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    pages_total: int = 0
    pages_used: int = 0
    pages_cached: int = 0

    def after(
        self, *, dispatched: int = 0, failed: int = 0, arrival: Arrival = NOTHING
    ) -> "LoopStats":
        """What has happened is counted as well."""
        return dataclasses.replace(
            self,
            dispatches=self.dispatches + dispatched,
            failed_dispatches=self.failed_dispatches + failed,
            unsound_rows=self.unsound_rows + len(arrival.unsound),
            drafted_tokens=self.drafted_tokens + arrival.drafted,
            accepted_tokens=self.accepted_tokens + arrival.accepted,
        )

    def of(self, lanes: Lanes, engine: EngineConfig) -> "LoopStats":
        """The same with what there is now."""
        each, waiting = lanes
        return dataclasses.replace(
            self,
            slots_in_use=sum(len(lane.running) for lane in each),
            queue_length=len(waiting),
            queued_tokens=sum(len(request.tokens) for request in waiting),
            prefix_hits=sum(lane.num_hits for lane in each),
            preemptions=sum(lane.num_preempted for lane in each),
            pages_total=engine.lanes * engine.num_pages,
            pages_used=sum(lane.cache.num_used for lane in each),
            pages_cached=sum(lane.cache.tree.num_pages for lane in each),
        )
