from __future__ import annotations

import asyncio
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tournant.limits import SYSTEM, RateLimit, VirtualClock
from tournant.limits.buckets import Bucket
from tournant.limits.pace import Pace

GAPS = st.sampled_from([0.0, 0.0, 0.0, 0.1, 0.25, 1.0, 3.0])
CALLS = st.lists(
    st.fixed_dictionaries(
        {
            "gap": GAPS,
            "tokens": st.integers(0, 60),
            "settle": st.none() | st.integers(0, 90),
            "cancel": st.none() | st.sampled_from([0.0, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0]),
            "throttled": st.none() | st.sampled_from([None, 0.0, 0.5, 3.0]),
        }
    ),
    min_size=1,
    max_size=40,
)
REQUESTS = st.sampled_from([1.0, 2.0, 4.0, 10.0])
TOKENS = st.sampled_from([10.0, 25.0, 100.0])
BURST = st.integers(1, 8)


class Ran:
    """Calls with gaps, costs, cancellations and refusals, run to their end in virtual time."""

    def __init__(
        self, requests: float, tokens: float, burst: int, calls: list, throttles: bool = False
    ) -> None:
        self.clock = VirtualClock()
        self.limit = RateLimit(
            requests=f"{requests:g}/s", tokens=f"{tokens:g}/s", burst=burst, clock=self.clock
        )
        self.granted: list[tuple[float, int, float]] = []
        self.freezes: list[tuple[float, float]] = []
        self.cancelled: set[int] = set()
        self.throttles = throttles
        self.clock.run(self.main(calls))

    async def one(self, number: int, call: dict) -> None:
        async with self.limit.reserve(call["tokens"]) as reserved:
            self.granted.append((self.clock.now(), number, call["tokens"]))
            assert reserved.granted_at == self.clock.now()
            if self.throttles and call["throttled"] is not None:
                reserved.throttled(call["throttled"])
                now = self.clock.now()
                self.freezes.append((now, now + self.limit.snapshot().frozen_for))
            elif call["settle"] is not None:
                reserved.settle(call["settle"])

    async def main(self, calls: list) -> None:
        loop = asyncio.get_running_loop()
        tasks = []
        for number, call in enumerate(calls):
            await asyncio.sleep(call["gap"])
            task = asyncio.ensure_future(self.one(number, call))
            tasks.append(task)
            if call["cancel"] is not None:
                loop.call_later(call["cancel"], task.cancel)
        for number, result in enumerate(await asyncio.gather(*tasks, return_exceptions=True)):
            if isinstance(result, asyncio.CancelledError):
                self.cancelled.add(number)
            elif result is not None:
                raise result


@given(REQUESTS, TOKENS, BURST, CALLS)
def test_never_more_than_burst_and_rate_in_any_window(
    requests: float, tokens: float, burst: int, calls: list
) -> None:
    calls = [{**call, "settle": None} for call in calls]
    ran = Ran(requests, tokens, burst, calls)
    token_burst = max(1.0, tokens * burst / requests)
    for first, (began, _, _) in enumerate(ran.granted):
        spent = 0.0
        for last, (ended, _, cost) in enumerate(ran.granted[first:], 1):
            spent += cost
            assert last <= burst + requests * (ended - began) + 1e-6
            larger = max(0.0, cost - token_burst)
            assert spent <= token_burst + larger + tokens * (ended - began) + 1e-6


@given(REQUESTS, TOKENS, BURST, CALLS)
def test_all_pass_in_the_order_in_which_they_came(
    requests: float, tokens: float, burst: int, calls: list
) -> None:
    ran = Ran(requests, tokens, burst, calls, throttles=True)
    numbers = [number for _, number, _ in ran.granted]
    assert numbers == sorted(numbers)
    assert set(numbers) | ran.cancelled == set(range(len(calls)))
    assert {number for number, call in enumerate(calls) if call["cancel"] is None} <= set(numbers)


@given(REQUESTS, BURST, st.lists(st.none() | st.integers(0, 40), min_size=1, max_size=40))
def test_no_permit_is_lost_to_a_cancellation(
    requests: float, burst: int, cancelled_at: list[int | None]
) -> None:
    # Cancelled at the very moments when their turn comes, and in between.
    calls = [
        {
            "gap": 0.0,
            "tokens": 0,
            "settle": None,
            "throttled": None,
            "cancel": None if at is None else at / (2 * requests),
        }
        for at in cancelled_at
    ]
    ran = Ran(requests, 10.0, burst, calls)
    for place, (at, _, _) in enumerate(ran.granted):
        assert at <= max(0.0, (place + 1 - burst) / requests) + 1e-6
    ran.clock.advance(100.0)
    shown = ran.limit.snapshot()
    assert (shown.waiting, shown.in_flight) == (0, 0)
    assert shown.requests is not None
    assert shown.requests.level == burst


@given(REQUESTS, TOKENS, BURST, CALLS)
def test_nothing_passes_while_frozen(
    requests: float, tokens: float, burst: int, calls: list
) -> None:
    ran = Ran(requests, tokens, burst, calls, throttles=True)
    for frozen, until in ran.freezes:
        assert not [at for at, _, _ in ran.granted if frozen < at < until - 1e-9]


@given(st.lists(st.tuples(st.integers(0, 500), st.integers(0, 500)), max_size=20))
def test_settling_keeps_the_sum(calls: list[tuple[int, int]]) -> None:
    clock = VirtualClock()
    limit = RateLimit(tokens="1_000_000/s", burst=1_000_000, clock=clock)
    for estimate, actual in calls:
        reserved = limit.try_reserve(estimate)
        assert reserved is not None
        reserved.settle(actual // 2)
        reserved.settle(actual)
        reserved.close()
    shown = limit.snapshot().tokens
    assert shown is not None
    assert shown.level == pytest.approx(1_000_000 - sum(actual for _, actual in calls))


@given(
    st.floats(0.1, 100), st.floats(0.01, 10), st.lists(st.tuples(st.floats(0, 5), st.floats(0, 50)))
)
def test_a_bucket_lets_pass_exactly_when_it_said(
    rate: float, seconds: float, calls: list[tuple[float, float]]
) -> None:
    now = 0.0
    bucket = Bucket(Pace(rate, rate), seconds, now)
    for pause, cost in calls:
        now += pause
        bucket.refill(now)
        assert bucket.level <= bucket.burst
        wait = bucket.wait_for(cost)
        if wait > 1e-6:
            now += wait * 0.99
            bucket.refill(now)
            assert bucket.wait_for(cost) > 0
            now += wait * 0.011
            bucket.refill(now)
        assert bucket.wait_for(cost) == 0
        bucket.take(cost)


@settings(max_examples=10)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=3))
def test_event_loops_in_several_threads_share_one_limit(cancels: list[int]) -> None:
    limit = RateLimit(requests="2000/s", burst=5)
    granted: list[float] = []
    failed: list[BaseException] = []

    async def one() -> None:
        async with limit.reserve() as reserved:
            granted.append(reserved.granted_at)

    async def main(cancel: int) -> None:
        tasks = [asyncio.ensure_future(one()) for _ in range(20 + cancel)]
        await asyncio.sleep(0)
        for task in tasks[:cancel]:
            task.cancel()
        await asyncio.gather(*tasks[cancel:])

    def thread(cancel: int) -> None:
        try:
            asyncio.run(main(cancel))
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=thread, args=(cancel,)) for cancel in cancels]
    for each in threads:
        each.start()
    for each in threads:
        each.join(60)
    assert not failed
    granted.sort()
    assert 20 * len(cancels) <= len(granted) <= 20 * len(cancels) + sum(cancels)
    for first, began in enumerate(granted):
        for last, ended in enumerate(granted[first:], 1):
            assert last <= 5 + 2000 * (ended - began) + 1e-3
    assert limit.snapshot().in_flight == 0


def test_waiters_of_a_loop_that_is_gone_hold_nobody_up() -> None:
    limit = RateLimit(requests="100/s", burst=1)
    loop = asyncio.new_event_loop()

    async def wait() -> None:
        async with limit.reserve():
            pass

    limit.throttled(0.2)
    abandoned = [loop.create_task(wait()) for _ in range(3)]
    loop.run_until_complete(asyncio.sleep(0))
    assert limit.snapshot().waiting == 3
    loop.close()
    asyncio.run(wait())
    assert limit.snapshot().waiting == 0
    assert SYSTEM.now() >= limit._shared.frozen_until
    for task in abandoned:
        task._log_destroy_pending = False  # type: ignore[attr-defined]
