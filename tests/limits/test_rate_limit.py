from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tournant.limits import InvalidLimit, Rate, RateLimit, Reservation, VirtualClock
from tournant.limits.rate import forget
from tournant.limits.verdict import retry_after_of


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


def rate(limit: RateLimit) -> float:
    found = limit.snapshot().requests
    assert found is not None
    return found.rate


async def passes(limit: RateLimit, count: int, tokens: float = 0) -> list[float]:
    async def one() -> float:
        async with limit.reserve(tokens) as reserved:
            return reserved.granted_at

    return list(await asyncio.gather(*(one() for _ in range(count))))


def test_calls_are_spaced_at_the_rate_after_the_burst(clock: VirtualClock) -> None:
    limit = RateLimit(requests="60/min", burst=3, clock=clock)
    assert clock.run(passes(limit, 6)) == pytest.approx([0, 0, 0, 1, 2, 3])


def test_tokens_are_limited_next_to_requests(clock: VirtualClock) -> None:
    limit = RateLimit(requests="600/s", tokens="100/s", burst=600, clock=clock)
    assert clock.run(passes(limit, 4, tokens=50)) == pytest.approx([0, 0, 0.5, 1.0])


def test_a_request_larger_than_the_bucket_passes_alone_and_pays_its_debt(
    clock: VirtualClock,
) -> None:
    limit = RateLimit(tokens="100/s", burst=100, clock=clock)

    async def main() -> list[float]:
        large, small = await asyncio.gather(passes(limit, 1, 1_000), passes(limit, 1, 10))
        return large + small

    assert clock.run(main()) == pytest.approx([0, 9.1])


def test_what_was_not_used_is_given_back_and_what_was_used_beyond_is_owed(
    clock: VirtualClock,
) -> None:
    limit = RateLimit(tokens="100/s", burst=100, clock=clock)

    async def main() -> list[float]:
        async with limit.reserve(100) as reserved:
            waiting = asyncio.ensure_future(passes(limit, 1, 50))
            await asyncio.sleep(0)
            reserved.settle(50)
        (first,) = await waiting
        async with limit.reserve(0) as reserved:
            reserved.settle(0)
            reserved.settle(100)
        (second,) = await passes(limit, 1, 1)
        return [first, second]

    assert clock.run(main()) == pytest.approx([0, 1.01])


def test_a_call_that_never_left_gives_everything_back(clock: VirtualClock) -> None:
    limit = RateLimit(requests="1/min", tokens="60/min", burst=1, clock=clock)

    async def main() -> list[float]:
        async with limit.reserve(60) as reserved:
            reserved.release()
        return await passes(limit, 1, 60)

    assert clock.run(main()) == [0]
    assert limit.snapshot().in_flight == 0


def test_a_call_that_failed_stays_counted_and_is_no_longer_in_flight(clock: VirtualClock) -> None:
    limit = RateLimit(requests="1/s", burst=1, clock=clock)

    async def main() -> list[float]:
        with pytest.raises(KeyError):
            async with limit.reserve():
                raise KeyError
        assert limit.snapshot().in_flight == 0
        return await passes(limit, 1)

    assert clock.run(main()) == pytest.approx([1])


def test_a_throttle_freezes_everyone_and_steps_down_once_for_a_burst(clock: VirtualClock) -> None:
    limit = RateLimit(requests="1000/s", burst=20, clock=clock)

    async def refused(delay: float) -> None:
        async with limit.reserve() as reserved:
            await asyncio.sleep(delay)
            reserved.throttled(retry_after=5)

    async def main() -> None:
        calls = [asyncio.ensure_future(refused(0.001 * n)) for n in range(10)]
        calls.append(asyncio.ensure_future(refused(7)))
        await asyncio.sleep(0.1)
        assert limit.snapshot().frozen_for == pytest.approx(4.909)
        assert "frozen for 4.9 s" in str(limit.snapshot())
        assert rate(limit) == pytest.approx(700)
        assert await passes(limit, 1) == pytest.approx([5.009])
        before = rate(limit)
        await calls[-1]  # its call left before the step down
        assert rate(limit) >= before
        assert limit.snapshot().throttled == 11

    clock.run(main())


def test_a_later_burst_steps_down_again(clock: VirtualClock) -> None:
    limit = RateLimit(requests="100/s", clock=clock)
    limit.throttled(1)
    limit.throttled(1)
    assert rate(limit) == pytest.approx(70)
    clock.advance(2.5)
    before = rate(limit)
    limit.throttled(1)
    assert rate(limit) == pytest.approx(0.7 * before)


def test_without_retry_after_the_freeze_doubles_until_a_call_succeeds(clock: VirtualClock) -> None:
    limit = RateLimit(requests="100/s", clock=clock)

    async def main() -> list[float]:
        frozen = []
        for succeeds in (False, False, False, True, False):
            async with limit.reserve() as reserved:
                if not succeeds:
                    reserved.throttled()
                    frozen.append(limit.snapshot().frozen_for)
        return frozen

    assert clock.run(main()) == pytest.approx([1, 2, 4, 1])


def test_after_a_freeze_one_passes_at_once_and_the_others_at_the_rate(clock: VirtualClock) -> None:
    limit = RateLimit(requests="1/min", burst=5, clock=clock)
    limit.throttled(retry_after=10)
    granted = clock.run(passes(limit, 2))
    assert granted[0] == pytest.approx(10)
    assert granted[1] > 60


def test_recovery_ends_at_the_configured_rate(clock: VirtualClock) -> None:
    limit = RateLimit(requests="100/s", clock=clock)
    limit.throttled(0)
    assert limit.snapshot().requests.why == "stepped down after a 429, recovering"
    clock.advance(1)
    assert 70 < rate(limit) < 100
    clock.advance(100)
    assert rate(limit) == 100
    assert str(limit.snapshot()) == "requests 100/s (configured)"


def test_headers_seed_a_limit_that_nobody_configured(clock: VirtualClock) -> None:
    limit = RateLimit(clock=clock)
    assert limit.snapshot().requests is None
    assert str(limit.snapshot()) == "no limit known"
    assert clock.run(passes(limit, 1_000)) == [0.0] * 1_000
    limit.observe({"x-ratelimit-limit-requests": "600", "x-ratelimit-limit-tokens": "6000"})
    found = limit.snapshot()
    assert (found.requests.rate, found.requests.goal) == pytest.approx((600, 600))
    assert found.tokens.rate == pytest.approx(6_000)
    assert found.requests.why == "advertised by the provider"


def test_headers_lower_a_configured_limit_and_never_raise_it(clock: VirtualClock) -> None:
    limit = RateLimit(requests="600/min", clock=clock)
    limit.observe({"x-ratelimit-limit-requests": "300"})
    assert rate(limit) == pytest.approx(300)
    limit.observe({"x-ratelimit-limit-requests": "9000"})
    assert rate(limit) == pytest.approx(600)


def test_what_others_used_up_is_not_there_for_us(clock: VirtualClock) -> None:
    limit = RateLimit(requests="60/min", burst=60, clock=clock)
    limit.observe({"x-ratelimit-remaining-requests": "1"})
    assert clock.run(passes(limit, 3)) == pytest.approx([0, 1, 2])


def test_what_the_provider_says_is_left_is_used_but_not_at_one_blow(clock: VirtualClock) -> None:
    def drained(observed: bool) -> list[float]:
        clock = VirtualClock()
        limit = RateLimit(requests="600/min", clock=clock)
        if observed:
            limit.observe(
                {"x-ratelimit-limit-requests": "600", "x-ratelimit-remaining-requests": "600"}
            )
        return clock.run(passes(limit, 300))

    assert drained(True)[-1] < drained(False)[-1] / 2
    assert sum(at <= 1.0 for at in drained(True)) < 60


def test_without_figures_the_first_429_makes_a_limit(clock: VirtualClock) -> None:
    limit = RateLimit(clock=clock)

    async def main() -> None:
        for _ in range(100):
            await asyncio.sleep(0.1)
            await passes(limit, 1)
        limit.throttled(1)

    clock.run(main())
    found = limit.snapshot().requests
    assert found.goal is None
    assert found.rate / found.seconds == pytest.approx(7, rel=0.1)


def test_the_kind_that_was_hit_is_the_kind_that_steps_down(clock: VirtualClock) -> None:
    def stepped(tokens: bool | None) -> tuple[float, float]:
        limit = RateLimit(requests="100/s", tokens="100/s", clock=VirtualClock())
        reserved = limit.try_reserve(40)
        assert reserved is not None
        reserved.close()
        limit.throttled(0, tokens=tokens)
        found = limit.snapshot()
        return found.requests.rate, found.tokens.rate

    assert stepped(True) == pytest.approx((100, 70))
    assert stepped(False) == pytest.approx((70, 100))
    assert stepped(None) == pytest.approx((100, 70)), "tokens were used more"


class Status(Exception):
    def __init__(self, status: int, headers: dict[str, str] | None = None) -> None:
        self.status = status
        self.headers = headers or {}


def test_an_exception_with_status_429_is_a_throttle_by_itself(clock: VirtualClock) -> None:
    limit = RateLimit(requests="100/s", clock=clock)

    async def main() -> None:
        with pytest.raises(Status):
            async with limit.reserve():
                raise Status(429, {"Retry-After": "30"})
        assert limit.snapshot().frozen_for == pytest.approx(30)
        assert await passes(limit, 1) == pytest.approx([30])
        with pytest.raises(Status):
            async with limit.reserve():
                raise Status(500)
        assert limit.snapshot().throttled == 1

    clock.run(main())


def test_an_error_in_the_body_is_a_throttle_where_the_predicate_says_so(
    clock: VirtualClock,
) -> None:
    def busy(outcome: object) -> float | bool | None:
        if isinstance(outcome, dict):
            return outcome.get("wait", False)
        return False if "quota" in str(outcome) else None

    limit = RateLimit(requests="100/s", is_throttle=busy, clock=clock)

    async def main() -> None:
        async with limit.reserve() as reserved:
            assert not reserved.check({"text": "hello"})
            assert reserved.check({"wait": 4.0})
        assert limit.snapshot().frozen_for == pytest.approx(4)
        quota = Status(429)
        quota.args = ("quota used up",)
        assert not limit.check(quota)
        assert limit.check(Status(429))

    clock.run(main())


def test_cancelled_while_waiting_it_has_taken_nothing(clock: VirtualClock) -> None:
    limit = RateLimit(requests="1/s", burst=1, clock=clock)

    async def main() -> list[float]:
        await passes(limit, 1)
        first, second, third = (asyncio.ensure_future(passes(limit, 1)) for _ in range(3))
        await asyncio.sleep(0.5)
        first.cancel()
        await asyncio.sleep(0)
        assert limit.snapshot().waiting == 2
        return [*(await second), *(await third)]

    assert clock.run(main()) == pytest.approx([1, 2])


def test_cancelled_when_its_turn_has_come_it_gives_its_turn_back(clock: VirtualClock) -> None:
    limit = RateLimit(requests="1000/s", tokens="1/s", burst=100_000, clock=clock)

    async def main() -> list[float]:
        async with limit.reserve(100) as reserved:
            waiting = asyncio.ensure_future(limit.reserve(50).__aenter__())
            await asyncio.sleep(0)
            assert limit.snapshot().waiting == 1
            reserved.settle(50)
            assert limit.snapshot().waiting == 0
            waiting.cancel()  # it was just let pass, and doesn't know yet
            await asyncio.gather(waiting, return_exceptions=True)
        return await passes(limit, 1, 50)

    assert clock.run(main()) == [0]
    assert limit.snapshot().in_flight == 0


def test_when_a_large_one_gives_up_the_small_ones_behind_it_pass_at_once(
    clock: VirtualClock,
) -> None:
    limit = RateLimit(tokens="10/s", burst=10, clock=clock)

    async def main() -> list[float]:
        await passes(limit, 1, 5)
        large = asyncio.ensure_future(passes(limit, 1, 10))
        small = asyncio.ensure_future(passes(limit, 1, 5))
        await asyncio.sleep(0.1)
        assert limit.snapshot().waiting == 2
        large.cancel()
        return await small

    assert clock.run(main()) == pytest.approx([0.1])


def test_a_reservation_is_for_one_call(clock: VirtualClock) -> None:
    limit = RateLimit(clock=clock)

    async def main() -> None:
        reserved = limit.reserve()
        async with reserved:
            pass
        with pytest.raises(InvalidLimit, match="for one call"):
            await reserved.__aenter__()

    clock.run(main())
    taken = limit.try_reserve()
    assert isinstance(taken, Reservation)
    taken.close()
    taken.close()
    assert limit.snapshot().in_flight == 0


@pytest.mark.parametrize("seconds", [-1, float("nan"), "5", True])
def test_a_wait_that_is_none_is_refused(seconds: object) -> None:
    with pytest.raises(InvalidLimit, match="give seconds"):
        RateLimit().throttled(seconds)  # type: ignore[arg-type]


def test_refusals_in_a_row_make_it_wait_longer_and_not_go_slower():
    """A minute that is used up already says nothing about the rate."""
    clock = VirtualClock()

    async def main():
        limit = RateLimit(requests="600/min", clock=clock)
        rates = []
        for _ in range(10):
            async with limit.reserve() as call:
                call.throttled()
            rates.append(limit.snapshot().requests.rate)
        waited = clock.now()
        async with limit.reserve():
            pass
        async with limit.reserve() as call:
            call.throttled()
        return rates, waited, limit.snapshot().requests.rate

    rates, waited, after = clock.run(main())
    assert rates[0] == pytest.approx(420)
    assert rates[-1] >= rates[0]
    assert waited > 60
    assert after < rates[-1]


def test_a_key_without_figures_joins_what_is_in_use(
    clock: VirtualClock, request: pytest.FixtureRequest
) -> None:
    request.addfinalizer(lambda: forget("joined"))
    first = RateLimit(requests="60/min", burst=3, key="joined", clock=clock)
    second = RateLimit(key="joined")
    assert second == first
    assert second.burst == 3
    second.throttled(5)
    assert first.snapshot().frozen_for == 5


@pytest.mark.parametrize("same", ["1.1M/min", Rate(1_100_000, 60), "1100k/60s"])
def test_the_same_rate_may_be_spelled_differently(
    same: str | Rate, request: pytest.FixtureRequest
) -> None:
    request.addfinalizer(lambda: forget("spelled"))
    first = RateLimit(requests="1_100_000/min", key="spelled")
    assert RateLimit(requests=same, key="spelled")._shared is first._shared
    with pytest.raises(InvalidLimit, match="the same figures in the same windows"):
        RateLimit(requests="66M/hour", key="spelled")


async def asynchronous(outcome: object) -> bool:
    return True


class Asynchronous:
    async def __call__(self, outcome: object) -> bool:
        return True


@pytest.mark.parametrize("rule", [asynchronous, Asynchronous()])
def test_a_rule_that_is_async_is_refused(rule: Any) -> None:
    with pytest.raises(InvalidLimit, match=r"is_throttle=.*it is async.*make it a plain def"):
        RateLimit(is_throttle=rule)


@pytest.mark.parametrize("verdict", ["yes", [], float("nan"), asynchronous])
def test_a_verdict_that_is_none_is_refused(verdict: Any, clock: VirtualClock) -> None:
    def rule(outcome: object) -> Any:
        return verdict(outcome) if callable(verdict) else verdict

    limit = RateLimit(is_throttle=rule, clock=clock)
    with pytest.raises(InvalidLimit, match=r"is_throttle=.*the function returned .*return True or"):
        limit.check("a reply")
    assert limit.snapshot().frozen_for == 0


def test_nobody_freezes_a_limit_for_more_than_a_day(clock: VirtualClock) -> None:
    class Refused(Exception):
        status, retry_after = 429, 1e300

    for limit, outcome in (
        (RateLimit(clock=clock), Refused()),
        (RateLimit(clock=clock, is_throttle=lambda _: float("inf")), "a reply"),
    ):
        assert limit.check(outcome)
        assert limit.snapshot().frozen_for == 86_400
    limit = RateLimit(clock=clock)
    limit.throttled(1e300)
    assert limit.snapshot().frozen_for == 86_400
    assert retry_after_of(Refused(), 0.0) == 86_400


def test_the_snapshot_says_who_chose_how_long_it_is_frozen(clock: VirtualClock) -> None:
    limit = RateLimit(clock=clock)
    limit.throttled()
    assert "frozen for 1.0 s after a 429 that did not say how long" in str(limit.snapshot())
    limit.throttled(3)
    assert "frozen for 3.0 s as the provider asked" in str(limit.snapshot())
    assert limit.snapshot().asked


def test_headers_are_read_from_what_clients_give(clock: VirtualClock) -> None:
    class Items:
        def items(self) -> list[tuple[str, str]]:
            return [("x-ratelimit-limit-requests", "5")]

    given: list[Any] = [
        {"x-ratelimit-limit-requests": 5},
        {b"X-RateLimit-Limit-Requests": b"5"},
        [(b"x-ratelimit-limit-requests", b"5"), (b"x", b"y")],
        Items(),
    ]
    for headers in given:
        limit = RateLimit(clock=clock)
        limit.observe(headers)
        assert rate(limit) == pytest.approx(5)
    for wrong in (None, 5, ["no pair"]):
        with pytest.raises(InvalidLimit, match=r"observe\(.*give a reply's headers"):
            RateLimit(clock=clock).observe(wrong)  # type: ignore[arg-type]
