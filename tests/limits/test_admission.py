from __future__ import annotations

import asyncio
import contextlib

import pytest

from tournant.limits import Adaptive, InvalidLimit, RateLimit, VirtualClock, admit, current


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


def test_whoever_gets_the_rate_and_finds_no_slot_keeps_neither(clock: VirtualClock) -> None:
    limit = RateLimit(requests="2/s", burst=1, clock=clock)
    adaptive = Adaptive(1, 8, start=8, clock=clock)
    began: list[float] = []

    async def one() -> None:
        async with admit(limit, adaptive):
            began.append(clock.now())

    async def main() -> None:
        await one()
        calls = [asyncio.ensure_future(one()) for _ in range(8)]
        await asyncio.sleep(0.1)
        assert limit.snapshot().waiting == 8
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(8):
                await stack.enter_async_context(adaptive.slot())
            await asyncio.sleep(10)
            shown = limit.snapshot()
            assert (shown.in_flight, shown.waiting) == (0, 0)
            assert shown.requests is not None
            assert shown.requests.level == pytest.approx(1)
            calls.pop().cancel()
        await asyncio.gather(*calls)

    clock.run(main())
    # What passed the rate while there was no slot is not spent all at once now.
    assert began[1:] == pytest.approx([10.1 + n / 2 for n in range(7)])
    assert limit.snapshot().in_flight == adaptive.snapshot().running == 0


class Status(Exception):
    headers = {"retry-after": "3"}

    def __init__(self, status: int) -> None:
        super().__init__(f"status {status}")
        self.status = status


def test_a_429_is_answered_by_the_rate_and_where_there_is_none_by_the_concurrency(
    clock: VirtualClock,
) -> None:
    limit = RateLimit(requests="100/s", clock=clock)
    adaptive = Adaptive(1, 64, start=20, clock=clock)

    async def main() -> None:
        with pytest.raises(Status):
            async with admit(limit, adaptive, tokens=5) as call:
                call.observe({"x-ratelimit-limit-requests": "600"})
                raise Status(429)
        assert limit.snapshot().frozen_for == pytest.approx(3)
        assert (adaptive.limit, adaptive.controller.slow_start) == (20, True)
        async with admit(limit, adaptive) as call:
            call.settle(10)
            assert not call.check("fine")
            call.throttled(1)
        assert limit.snapshot().throttled == 2
        assert adaptive.limit == 20
        with pytest.raises(Status):
            async with admit(None, adaptive):
                raise Status(429)
        assert adaptive.limit == 14

    clock.run(main())


@pytest.mark.parametrize("error", [Status(503), TimeoutError()])
def test_overload_and_timeouts_are_answered_by_the_concurrency(
    clock: VirtualClock, error: Exception
) -> None:
    limit = RateLimit(requests="100/s", clock=clock)
    adaptive = Adaptive(1, 64, start=20, clock=clock)

    async def main() -> None:
        with pytest.raises(type(error)):
            async with admit(limit, adaptive):
                raise error
        assert limit.snapshot().throttled == 0
        assert adaptive.limit == 14

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


def test_a_result_that_was_judged_is_not_judged_again_by_its_exception(clock: VirtualClock) -> None:
    shown = []

    def is_throttle(outcome: object) -> bool:
        shown.append(outcome)
        return True

    limit = RateLimit(requests="100/s", clock=clock, is_throttle=is_throttle)
    call = admit(limit)
    assert call.try_enter()
    assert call.check("busy")
    call.close(ValueError("busy"))
    assert shown == ["busy"]
    assert limit.snapshot().throttled == 1
    assert limit.snapshot().in_flight == 0


def test_a_predicate_that_raises_says_so_and_loses_nothing(clock: VirtualClock) -> None:
    limit = RateLimit(requests="100/s", clock=clock, is_throttle=lambda outcome: 1 / 0)
    adaptive = Adaptive(1, 4, clock=clock)
    call = admit(limit, adaptive)
    assert call.try_enter()
    with pytest.raises(ZeroDivisionError) as caught:
        call.close(ValueError("busy"))
    assert "RateLimit(is_throttle=...)" in caught.value.__notes__[0]
    assert limit.snapshot().in_flight == adaptive.snapshot().running == 0


def test_taken_apart_it_waits_and_gives_back(clock: VirtualClock) -> None:
    limit = RateLimit(requests="1/s", burst=1, clock=clock)
    adaptive = Adaptive(1, 2, start=2, clock=clock)
    first, second, third = admit(limit, adaptive), admit(limit, adaptive), admit(limit, adaptive)

    async def main() -> None:
        assert first.try_enter()
        assert not second.try_enter()
        assert adaptive.snapshot().running == 1
        first.release()
        first.close()
        await second.enter()
        assert clock.now() == 0
        assert not third.try_enter()
        second.excuse(0.5)
        second.close()
        second.close()
        await third.enter()
        assert clock.now() == pytest.approx(1)
        third.close()
        with pytest.raises(InvalidLimit, match="for one call"):
            third.try_enter()

    clock.run(main())
    assert limit.snapshot().in_flight == adaptive.snapshot().running == 0


def test_outside_of_a_stage_there_is_no_current_admission() -> None:
    assert current() is None
