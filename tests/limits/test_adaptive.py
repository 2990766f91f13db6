from __future__ import annotations

import asyncio
import json
import pickle
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tournant.limits import Adaptive, Controller, InvalidLimit, VirtualClock, outcome_of


def drive(
    adaptive: Adaptive,
    clock: VirtualClock,
    seconds: float,
    servers: int,
    workers: int = 150,
    spread: float = 0.0,
) -> None:
    """Keep it saturated with calls of half a second, of which the provider works on `servers` at once."""
    rng = random.Random(servers)

    async def work(provider: asyncio.Semaphore) -> None:
        while True:
            async with adaptive.slot(), provider:
                await asyncio.sleep(0.5 * rng.uniform(1 - spread, 1 + spread))

    async def main() -> None:
        provider = asyncio.Semaphore(servers)
        tasks = [asyncio.ensure_future(work(provider)) for _ in range(workers)]
        await asyncio.sleep(seconds)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    clock.run(main())
    assert adaptive.snapshot().running == 0


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


def test_slow_start_reaches_the_maximum_of_a_provider_that_scales(clock: VirtualClock) -> None:
    adaptive = Adaptive(1, 64, clock=clock)
    assert adaptive.limit == 8
    drive(adaptive, clock, 5, servers=1_000)
    assert adaptive.limit == 64


@pytest.mark.parametrize("spread", [0.0, 0.5])
@pytest.mark.parametrize("knee", [8, 20, 40])
def test_it_settles_near_the_knee(clock: VirtualClock, knee: int, spread: float) -> None:
    adaptive = Adaptive(1, 100, clock=clock)
    drive(adaptive, clock, 240, knee, spread=spread)
    assert 0.8 * knee <= adaptive.limit <= 2 * knee


def test_it_does_not_grow_while_nobody_needs_it(clock: VirtualClock) -> None:
    adaptive = Adaptive(1, 64, clock=clock)
    drive(adaptive, clock, 60, servers=1_000, workers=3)
    assert adaptive.limit == 8


def controller(limit: int, clock: VirtualClock, low: int = 1) -> Controller:
    return Controller(low, 100, limit, clock, latency=1.0, settled=True)


def test_a_burst_of_refusals_cuts_once_and_the_floor_holds(clock: VirtualClock) -> None:
    core = controller(20, clock, low=10)
    for _ in range(20):
        assert core.try_enter()
    assert not core.try_enter()
    clock.advance(1.0)
    for _ in range(10):
        core.leave("throttled", 1.0)
    assert core.limit == 14
    clock.advance(1.0)
    core.leave("timed_out", 2.0)  # it began before the cut
    assert core.limit == 14
    core.leave("throttled", 0.5)
    assert core.limit == 10
    clock.advance(1.0)
    core.leave("throttled", 0.5)
    assert core.limit == 10


def calls(core: Controller, clock: VirtualClock, count: int, seconds: float, outcome="ok") -> None:
    """So many rounds of calls that use the limit fully."""
    for _ in range(count):
        while core.try_enter():
            pass
        clock.advance(seconds)
        for _ in range(core.running):
            core.leave(outcome, seconds)
            core.try_enter()
    while core.running:
        core.leave("cancelled", 0.0)


def test_a_lone_timeout_is_taken_back_when_the_rest_is_well(clock: VirtualClock) -> None:
    core = controller(20, clock)
    assert core.try_enter()
    core.leave("timed_out", 0.0)
    assert core.limit == 14
    calls(core, clock, 2, 1.0)
    assert core.limit >= 20


def test_timeouts_that_go_on_are_the_load(clock: VirtualClock) -> None:
    core = controller(20, clock)
    for _ in range(3):
        assert core.try_enter()
        clock.advance(1.0)
        core.leave("timed_out", 0.5)
    assert core.limit == 6
    calls(core, clock, 2, 1.0)
    assert core.limit < 20


def test_a_rise_in_latency_cuts_and_is_taken_back_when_it_was_not_the_load(
    clock: VirtualClock,
) -> None:
    core = controller(20, clock)
    calls(core, clock, 2, 3.0)
    assert core.limit == 14
    assert core.why == "cut after a rise in latency"
    calls(core, clock, 2, 3.0)
    assert core.limit == 20
    calls(core, clock, 3, 3.0)
    assert core.limit >= 20


def test_rejected_failed_and_cancelled_calls_do_not_count_in_latency(clock: VirtualClock) -> None:
    core = controller(4, clock)
    for outcome in ("failed", "cancelled", "throttled", "timed_out"):
        calls(core, clock, 20, 0.001, outcome)
    assert core.latency == 1.0


def test_watchers_hear_when_there_is_room_again(clock: VirtualClock) -> None:
    core = controller(1, clock)
    heard: list[int] = []
    end = core.watch(heard.append)
    assert core.try_enter()
    core.leave("ok", 1.0)
    assert heard == [], "nobody was refused"
    assert core.try_enter()
    assert not core.try_enter()
    core.leave("ok", 1.0)
    assert heard == [1]
    end()
    assert core.try_enter()
    assert not core.try_enter()
    core.leave("ok", 1.0)
    assert heard == [1]


def test_what_was_found_can_be_kept_between_runs(clock: VirtualClock) -> None:
    first = Adaptive(1, 64, clock=clock)
    drive(first, clock, 60, servers=20)
    kept = json.loads(json.dumps(first.state()))
    assert Adaptive(1, 64, state=kept).limit == first.limit
    assert Adaptive(1, 10, state=kept).limit == 10
    assert pickle.loads(pickle.dumps(Adaptive(2, 9, state=kept))).limit == 9
    assert pickle.loads(pickle.dumps(Adaptive(2, 9))).limit == 8


@pytest.mark.parametrize(
    ("options", "mend"),
    [
        ({"min": 0}, "whole number >= 1"),
        ({"max": 2.5}, "whole number >= 1"),
        ({"min": True}, "whole number >= 1"),
        ({"min": 5, "max": 4}, "at least min"),
        ({"start": 65}, "between min=1 and max=64"),
        ({"state": {}}, "what state"),
        ({"state": {"limit": 0}}, "what state"),
        ({"state": {"limit": 3, "latency": "fast"}}, "what state"),
        ({"state": "kept"}, "what state"),
    ],
)
def test_what_cannot_be_is_refused_with_the_mend(options: dict, mend: str) -> None:
    with pytest.raises(InvalidLimit, match=mend):
        Adaptive(**options)


def test_slots_are_given_in_order_and_none_is_lost_to_a_cancellation(clock: VirtualClock) -> None:
    adaptive = Adaptive(1, 2, clock=clock)
    order: list[int] = []

    async def one(number: int) -> None:
        async with adaptive.slot():
            order.append(number)
            await asyncio.sleep(1)

    async def main() -> None:
        tasks = [asyncio.ensure_future(one(number)) for number in range(8)]
        await asyncio.sleep(0)
        assert adaptive.snapshot().waiting == 6
        tasks[3].cancel()  # waits
        tasks[0].cancel()  # runs
        await asyncio.sleep(0)
        tasks[2].cancel()  # was just given a slot, and doesn't know yet
        await asyncio.gather(*tasks, return_exceptions=True)

    clock.run(main())
    assert order == sorted(order)
    assert {1, 4, 5, 6, 7} <= set(order)
    assert adaptive.snapshot().running == 0


@given(
    st.integers(1, 4),
    st.lists(
        st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.none() | st.integers(0, 8)), max_size=25
    ),
)
def test_no_slot_is_lost_and_none_is_given_twice(limit: int, plan: list) -> None:
    clock = VirtualClock()
    adaptive = Adaptive(limit, limit, clock=clock)
    running = most = 0

    async def one(seconds: float) -> None:
        nonlocal running, most
        async with adaptive.slot():
            running += 1
            most = max(most, running)
            try:
                await asyncio.sleep(seconds)
            finally:
                running -= 1

    async def main() -> None:
        loop = asyncio.get_running_loop()
        tasks = [asyncio.ensure_future(one(seconds)) for seconds, _ in plan]
        for task, (_, cancel) in zip(tasks, plan, strict=True):
            if cancel is not None:
                loop.call_later(cancel / 2, task.cancel)
        await asyncio.gather(*tasks, return_exceptions=True)

    clock.run(main())
    assert most <= limit
    shown = adaptive.snapshot()
    assert (shown.running, shown.waiting) == (0, 0)


def test_how_a_call_ended_is_read_from_its_exception(clock: VirtualClock) -> None:
    class Status(Exception):
        status_code = 503

    class Bad(Exception):
        status_code = 400

    assert outcome_of(None) == "ok"
    assert outcome_of(TimeoutError()) == "timed_out"
    assert outcome_of(Status()) == "throttled"
    assert outcome_of(Bad()) == "failed"
    assert outcome_of(asyncio.CancelledError()) == "cancelled"

    async def main() -> list[int]:
        limits = []
        for report in ("throttled", "timed_out", "failed"):
            adaptive = Adaptive(1, 64, start=20, clock=clock)
            async with adaptive.slot() as slot:
                getattr(slot, report)()
            limits.append(adaptive.limit)
            with pytest.raises(InvalidLimit, match="for one call"):
                await slot.__aenter__()
        return limits

    assert clock.run(main()) == [14, 14, 20]


STORIES = st.lists(
    st.tuples(
        st.sampled_from(["ok", "ok", "ok", "throttled", "timed_out", "failed", "cancelled"]),
        st.floats(0, 10),
    ),
    max_size=300,
)


@given(st.integers(1, 5), st.integers(5, 20), STORIES)
def test_the_limit_stays_between_its_bounds_whatever_happens(
    low: int, high: int, story: list
) -> None:
    clock = VirtualClock()
    core = Controller(low, high, low, clock)
    for outcome, seconds in story:
        while core.try_enter():
            pass
        assert core.running >= 1
        clock.advance(seconds / 10)
        core.leave(outcome, seconds)
        assert low <= core.limit <= high
