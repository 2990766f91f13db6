from __future__ import annotations

import asyncio

import pytest

from tournant.limits import Adaptive, InvalidLimit, RateLimit, VirtualClock, admit


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


def test_waiting_for_the_rate_holds_no_slot(clock: VirtualClock) -> None:
    limit = RateLimit(requests="1/s", burst=1, clock=clock)
    adaptive = Adaptive(1, 4, clock=clock)

    async def one() -> None:
        async with admit(limit, adaptive):
            pass

    async def main() -> None:
        calls = [asyncio.ensure_future(one()) for _ in range(10)]
        await asyncio.sleep(0.5)
        assert limit.snapshot().waiting == 9
        assert adaptive.snapshot().running == 0
        await asyncio.gather(*calls)

    clock.run(main())
    assert clock.now() == pytest.approx(9)


def test_waiting_for_a_slot_holds_no_permit(clock: VirtualClock) -> None:
    limit = RateLimit(requests="1000/s", clock=clock)
    adaptive = Adaptive(1, 2, clock=clock)

    async def one() -> None:
        async with admit(limit, adaptive):
            await asyncio.sleep(1)

    async def main() -> None:
        calls = [asyncio.ensure_future(one()) for _ in range(10)]
        await asyncio.sleep(0.5)
        assert limit.snapshot().in_flight == 2
        for call in calls[5:]:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)

    clock.run(main())
    assert limit.snapshot().in_flight == adaptive.snapshot().running == 0


def test_cancelled_between_permit_and_slot_it_gives_the_permit_back(clock: VirtualClock) -> None:
    limit = RateLimit(requests="1/s", burst=1, clock=clock)
    adaptive = Adaptive(1, 1, clock=clock)

    async def one() -> None:
        async with admit(limit, adaptive):
            pass

    async def main() -> None:
        await one()
        call = asyncio.ensure_future(one())
        await asyncio.sleep(0.5)
        async with adaptive.slot():
            await asyncio.sleep(1)
            assert limit.snapshot().in_flight == 1
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
        shown = limit.snapshot()
        assert shown.in_flight == 0
        assert shown.requests is not None
        assert shown.requests.level == pytest.approx(1)

    clock.run(main())


def test_a_429_reaches_both_loops(clock: VirtualClock) -> None:
    class Status(Exception):
        status = 429
        headers = {"retry-after": "3"}

    limit = RateLimit(requests="100/s", clock=clock)
    adaptive = Adaptive(1, 64, start=20, clock=clock)

    async def main() -> None:
        with pytest.raises(Status):
            async with admit(limit, adaptive, tokens=5) as call:
                call.observe({"x-ratelimit-limit-requests": "600"})
                raise Status
        assert adaptive.limit == 14
        assert limit.snapshot().frozen_for == pytest.approx(3)
        async with admit(limit, adaptive) as call:
            call.settle(10)
            assert not call.check("fine")
            call.throttled(1)
        assert limit.snapshot().throttled == 2

    clock.run(main())


def test_either_may_be_missing(clock: VirtualClock) -> None:
    adaptive = Adaptive(1, 64, start=20, clock=clock)

    async def main() -> None:
        async with admit() as call:
            call.settle(5)
            call.observe({})
            call.throttled()
            call.timed_out()
            assert not call.check(None)
        async with admit(concurrency=adaptive) as call:
            call.throttled()
        assert adaptive.limit == 14
        with pytest.raises(InvalidLimit, match="for one call"):
            await call.__aenter__()

    clock.run(main())
