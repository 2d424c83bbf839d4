import dataclasses

from jaxserver.core import lanes, scheduler
from jaxserver.core.config import MIN_CALL_TOKENS, EngineConfig
from jaxserver.core.lanes import Lanes
from jaxserver.core.schedule import Plan, QueuedRequest
from tests.simulated import Asked, SimulatedDevice

ENGINE = EngineConfig(slots=8, lanes=2, max_len=256)
LONG = tuple(range(100))


class House:
    """Two lanes whose devices are simulated, and what has come to each."""

    def __init__(self, engine: EngineConfig = ENGINE) -> None:
        self.engine = engine
        self.lanes = lanes.empty(engine)
        self.asked: dict[int, Asked] = {}
        self.devices = [SimulatedDevice(engine, self.asked) for _ in range(2)]

    def come(self, *prompts: tuple[int, ...], size: int = 8) -> None:
        for prompt in prompts:
            request_id = len(self.asked)
            self.asked[request_id] = Asked(prompt=prompt, answer=tuple(range(size)))
            queued = QueuedRequest(
                request_id=request_id,
                tokens=prompt,
                limit=len(prompt) + size,
                streaming=True,
            )
            self.lanes = lanes.submit(self.lanes, queued)

    def plan(self, lane: int) -> Plan | None:
        plan, self.lanes = lanes.plan(self.lanes, lane, self.engine, 0.0)
        return plan

    def run(self, lane: int) -> bool:
        plan = self.plan(lane)
        if plan is not None:
            outcome = self.devices[lane].run(plan, 0.01)
            state = self.lanes.state(lane)
            after = scheduler.absorb(state, self.engine, plan, outcome)
            self.lanes = self.lanes.after(lane, after)
        return plan is not None

    def finish(self) -> None:
        while self.run(0) or self.run(1):
            pass
        assert not self.lanes.requests

    def running(self) -> list[list[int]]:
        return [
            [r.request.request_id for r in lane.running] for lane in self.lanes.each
        ]


def prompt(first: int) -> tuple[int, ...]:
    return (1000 + first, *range(9))


def test_few_requests_are_run_together() -> None:
    house = House()
    house.come(*map(prompt, range(MIN_CALL_TOKENS)))
    while house.lanes.waiting:
        for lane in (1, 0):
            house.run(lane)
    assert house.running() == [[], [0, 1, 2, 3]]


def test_many_are_shared_out_evenly() -> None:
    house = House()
    house.come(*map(prompt, range(2 * ENGINE.slots)))
    while house.lanes.waiting:
        for lane in range(2):
            house.run(lane)
        in_slots = [len(each) for each in house.running()]
        assert abs(in_slots[0] - in_slots[1]) <= 1
    house.finish()


def test_a_request_goes_where_its_beginning_is_kept() -> None:
    house = House()
    house.come(LONG)
    assert house.run(1)
    house.finish()
    house.come((*LONG, 7))
    assert house.plan(0) is None
    assert house.plan(1) is not None
    assert house.lanes.each[1].num_hits == 1
    (running,) = house.lanes.each[1].running
    assert (running.found, running.wanted) == (len(LONG), len(LONG) + 1)


def test_it_does_not_wait_for_a_lane_that_is_full() -> None:
    house = House(dataclasses.replace(ENGINE, slots=1))
    house.come(LONG)
    house.run(1)
    house.finish()
    house.come(LONG[:60], size=100)
    house.run(1)
    house.come((*LONG, 7))
    assert house.plan(0) is not None
    assert house.running() == [[2], [1]]


def reading(house: House, left: int) -> None:
    """The second lane holds `LONG`, and reads a prompt of which so much is left."""
    house.come(LONG, size=100)
    while house.run(1) and house.lanes.each[1].running[0].stored < len(LONG):
        pass
    chunk = ENGINE.prefill_lengths[-1]
    house.come((*LONG[:50], *range(500, 500 + chunk + left)), size=2)
    assert house.plan(1) is not None
    (_, reader) = house.lanes.each[1].running
    assert reader.wanted - reader.prefilled == left


def test_a_lane_that_reads_a_prompt_is_waited_for_where_that_saves_more() -> None:
    house = House()
    reading(house, left=50)
    house.come((*LONG, 7))
    assert house.plan(0) is None


def test_it_is_not_waited_for_where_that_takes_longer_or_saves_nothing() -> None:
    for left, wanted in ((101, (*LONG, 7)), (50, prompt(0))):
        house = House(dataclasses.replace(ENGINE, max_len=512))
        reading(house, left=left)
        house.come(wanted)
        assert house.plan(0) is not None


def test_a_beginning_that_saves_no_chunk_crowds_nobody_into_a_lane() -> None:
    house = House()
    alike = [(*range(40), 1000 + nth, *range(9)) for nth in range(2 * ENGINE.slots)]
    house.come(*alike)
    while house.lanes.waiting:
        for lane in range(2):
            house.run(lane)
        in_slots = [len(each) for each in house.running()]
        assert abs(in_slots[0] - in_slots[1]) <= 1


def test_what_fails_in_one_lane_leaves_alone_who_is_still_read_in_another() -> None:
    house = House()
    house.come(LONG)
    assert house.plan(0) is not None
    (running,) = house.lanes.each[0].running
    preempted = running.request
    assert preempted.unread == 1
    waiting = Lanes(lanes.empty(ENGINE).each, (preempted,))
    state, _ = scheduler.lose(waiting.state(1), ENGINE, ())
    assert state.waiting == (preempted,)
    state, _ = scheduler.lose(waiting.state(0), ENGINE, (), [preempted.request_id])
    assert [r.unread for r in state.waiting] == [0]


def test_who_comes_to_idle_lanes_leaves_more_of_what_is_kept() -> None:
    house = House()
    for first in range(4):
        house.come(prompt(first))
        for lane in range(2):
            house.run(lane)
        house.finish()
    kept = [lane.cache.tree.num_pages for lane in house.lanes.each]
    assert kept == [1, 1]


def test_a_lane_at_work_is_not_waited_for_where_it_has_as_much_to_do() -> None:
    """Though its cache keeps less, which decides between idle ones."""
    house = House()
    house.come(LONG, LONG[::-1])
    assert house.run(0)
    house.finish()
    house.come(*map(prompt, range(6)), size=50)
    assert house.plan(0) is None
    assert house.run(1)
    for _ in range(3):
        assert house.run(0)
    assert house.running() == [[3, 4], [2]]


def test_it_is_waited_for_where_it_keeps_what_would_make_the_prefill_dearer() -> None:
    for wanted, is_taken in (
        ((*LONG, *range(500, 520)), False),
        ((*LONG[:50], *range(500, 550)), False),
        ((*LONG[:10], *range(500, 590)), True),
    ):
        house = House()
        house.come(*map(prompt, range(6)), size=200)
        while house.lanes.waiting:
            house.run(0)
            house.run(1)
        house.come(LONG, size=1)
        while house.lanes.waiting or len(house.lanes.each[1].running) > 3:
            house.run(1)
        assert [len(each) for each in house.running()] == [3, 3]
        house.come(wanted)
        for _ in range(3):
            assert house.run(0)
        assert (not house.lanes.waiting) == is_taken


def test_a_request_is_released_wherever_it_is() -> None:
    house = House()
    house.come(*map(prompt, range(20)))
    for _ in range(20):
        for lane in range(2):
            house.plan(lane)
    everybody = range(20)
    assert house.lanes.waiting
    assert all(house.running())
    assert lanes.release(house.lanes, ENGINE, everybody).requests == ()


def test_the_longest_beginning_is_found() -> None:
    house = House()
    house.come(LONG[:50])
    house.run(0)
    given = lanes.give(house.lanes, ENGINE, LONG)
    assert given is not None
    found, _ = lanes.find(given[1], ENGINE, LONG)
    assert (found.lane, found.length) == (1, 100)


def test_what_is_brought_goes_where_the_least_is_kept() -> None:
    house = House()
    house.come(LONG)
    house.run(0)
    house.finish()
    given = lanes.give(house.lanes, ENGINE, (7, 8, 9))
    assert given is not None
    found, after = given
    assert (found.lane, found.length) == (1, 3)
    assert lanes.find(after, ENGINE, (7, 8, 9))[0].length == 3


def test_an_engine_of_one_lane_is_what_it_was() -> None:
    alone = dataclasses.replace(ENGINE, lanes=1)
    assert lanes.empty(alone) == Lanes((scheduler.empty(alone),))
