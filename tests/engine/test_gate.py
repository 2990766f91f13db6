"""Stages with a limit, on the loop: what is admitted, when, and what is held meanwhile. In virtual time."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from gate_samples import Refused, held, same

import tournant as tn
from tournant.engine.run import Run
from tournant.limits import Adaptive, RateLimit, VirtualClock, current


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


def test_calls_begin_at_the_rate(clock: VirtualClock) -> None:
    limit = RateLimit(requests="10/s", burst=1, clock=clock)
    began = []

    async def ask(item: int) -> int:
        began.append(clock.now())
        await asyncio.sleep(3)
        return item

    values = clock.run(tn.Pipeline(range(21)).map(ask, limit=limit).acollect())
    assert sorted(values) == list(range(21))
    assert began == pytest.approx([n / 10 for n in range(21)])
    assert held(limit) == 0


def test_the_cost_of_an_item_counts_and_what_was_used_is_settled(clock: VirtualClock) -> None:
    limit = RateLimit(tokens="100/s", burst=100, clock=clock)
    began = []

    async def ask(item: int) -> None:
        began.append(clock.now())
        call = current()
        assert call is not None
        call.settle(50)

    clock.run(tn.Pipeline([100] * 5).for_each(ask, limit=limit, cost=lambda item: item).arun())
    # The whole bucket is reserved, half of it comes back.
    assert began == pytest.approx([0, 0.5, 1, 1.5, 2])


def test_a_number_is_a_cost_too(clock: VirtualClock) -> None:
    limit = RateLimit(tokens="100/s", burst=100, clock=clock)
    clock.run(tn.Pipeline(range(5)).for_each(same, limit=limit, cost=100).arun())
    assert clock.now() == pytest.approx(4)


def test_waiting_for_the_rate_is_neither_work_nor_part_of_the_timeout(clock: VirtualClock) -> None:
    limit = RateLimit(requests="1/s", burst=1, clock=clock)
    p = tn.Pipeline(range(10)).map(same, limit=limit, timeout=0.5, concurrency=4)
    report = clock.run(p.arun())
    assert report.done == 10
    assert report.stages[0].busy < 1
    # Four wait at a time but for the last ones.
    assert report.stages[0].wait_limit == pytest.approx(9 + 8 + 7 + 6, abs=4.1)


def test_the_number_of_calls_at_once_holds_behind_the_rate(clock: VirtualClock) -> None:
    limit = RateLimit(requests="10/s", burst=5, clock=clock)
    running, peak = 0, 0

    async def ask(item: int) -> None:
        nonlocal running, peak
        running += 1
        peak = max(peak, running)
        await asyncio.sleep(1 if item else 0.1)
        running -= 1

    p = tn.Pipeline(range(40)).map(same, concurrency=30).for_each(ask, limit=limit, concurrency=3)
    limit.throttled(2)  # all find that there is room, and wait together
    assert clock.run(p.arun()).done == 40
    assert peak == 3


def test_nobody_has_the_rate_and_waits_for_the_number(clock: VirtualClock) -> None:
    limit = RateLimit(requests="10/s", clock=clock)

    async def ask(item: int) -> None:
        await asyncio.sleep(10)

    async def main() -> None:
        p = tn.Pipeline(range(40)).map(same, concurrency=30)
        run = Run(p.for_each(ask, limit=limit, concurrency=1))
        limit.throttled(2)
        await run.start()
        await asyncio.sleep(5)
        assert limit.snapshot().in_flight == 1
        run._halt()
        await run.wait()
        assert (await run.close()).done == 1
        assert held(limit) == 0

    clock.run(main())


def test_a_stage_follows_what_adaptive_allows(clock: VirtualClock) -> None:
    adaptive = Adaptive(1, 32, start=2, clock=clock)
    running, peak = 0, []

    async def ask(item: int) -> None:
        nonlocal running
        running += 1
        peak.append(running)
        assert running <= adaptive.limit
        await asyncio.sleep(1)
        running -= 1

    report = clock.run(tn.Pipeline(range(300)).for_each(ask, concurrency=adaptive).arun())
    assert report.done == 300
    assert max(peak[:2]) == 2
    assert 8 < max(peak) <= 32
    assert report.stages[0].limit == adaptive.limit
    assert held(adaptive) == 0


def test_what_waits_for_the_rate_holds_no_place_of_adaptive(clock: VirtualClock) -> None:
    limit = RateLimit(requests="1/s", burst=1, clock=clock)
    adaptive = Adaptive(1, 4, start=4, clock=clock)

    async def look() -> None:
        await asyncio.sleep(0.5)
        assert limit.snapshot().waiting == 4
        assert adaptive.snapshot().running == 0

    async def main() -> None:
        p = tn.Pipeline(range(6)).for_each(same, limit=limit, concurrency=adaptive)
        await asyncio.gather(p.arun(), look())

    clock.run(main())


def test_a_429_freezes_everyone_once_and_the_retry_comes_behind_it(clock: VirtualClock) -> None:
    limit = RateLimit(requests="100/s", burst=1, clock=clock)
    adaptive = Adaptive(1, 64, start=20, clock=clock)
    asked: list[tuple[float, int]] = []

    async def ask(item: int) -> int:
        asked.append((clock.now(), item))
        await asyncio.sleep(0.001)
        if len(asked) == 1:
            raise Refused(7)
        return item

    p = tn.Pipeline(range(50)).map(
        ask, limit=limit, concurrency=adaptive, retry=tn.Retry(attempts=2)
    )
    assert sorted(clock.run(p.acollect())) == list(range(50))
    shown = limit.snapshot()
    assert shown.throttled == 1
    assert adaptive.limit >= 20
    assert all(when >= 7 for when, _ in asked[1:])
    assert next(when for when, item in asked[1:] if item == 0) < 8


def test_a_retry_that_waits_holds_nothing(clock: VirtualClock) -> None:
    limit = RateLimit(requests="100/s", clock=clock)
    adaptive = Adaptive(1, 1, clock=clock)
    seen = []

    async def ask(item: int) -> int:
        seen.append((item, clock.now()))
        if item == 0 and len(seen) == 1:
            error = ConnectionError("reset")
            error.retry_after = 5.0  # type: ignore[attr-defined]
            raise error
        return item

    p = tn.Pipeline(range(3)).map(ask, limit=limit, concurrency=adaptive, retry=tn.Retry(delay=0.0))
    assert clock.run(p.acollect()) == [1, 2, 0]
    assert [item for item, _ in seen] == [0, 1, 2, 0]
    assert seen[2][1] < 1
    assert seen[3][1] == pytest.approx(5)


def test_a_result_that_is_a_throttle_is_asked_again(clock: VirtualClock) -> None:
    limit = RateLimit(
        requests="100/s",
        clock=clock,
        is_throttle=lambda outcome: (
            isinstance(outcome, dict) and outcome.get("error") == "slow down"
        ),
    )
    asked = 0

    async def ask(item: int) -> dict[str, Any]:
        nonlocal asked
        asked += 1
        return {"error": "slow down"} if asked == 1 else {"answer": item}

    p = tn.Pipeline([1]).map(ask, limit=limit, retry=tn.Retry())
    assert clock.run(p.acollect()) == [{"answer": 1}]
    assert limit.snapshot().throttled == 1
    assert clock.now() >= 1

    asked = 0
    p = tn.Pipeline([1], on_error="skip").map(ask, limit=limit)
    report = clock.run(p.arun())
    (failure,) = report.failures
    assert isinstance(failure.error, tn.errors.Throttled)
    assert "slow down" in str(failure.error)
    assert "tn.Retry()" in str(failure.error)
    assert limit.snapshot().throttled == 2


def test_a_child_that_is_a_throttle_fails_its_fan_out(clock: VirtualClock) -> None:
    limit = RateLimit(requests="100/s", clock=clock, is_throttle=lambda outcome: outcome == "busy")

    async def stream(item: int) -> Any:
        yield "word"
        yield "busy"

    report = clock.run(tn.Pipeline([1], on_error="skip").flat_map(stream, limit=limit).arun())
    assert isinstance(report.failures[0].error, tn.errors.Throttled)
    assert held(limit) == 0


@pytest.mark.parametrize("retry", [None, tn.Retry()])
def test_a_fan_out_is_admitted_until_its_generator_has_ended(
    clock: VirtualClock, retry: tn.Retry | None
) -> None:
    limit = RateLimit(requests="100/s", clock=clock)
    adaptive = Adaptive(1, 2, start=2, clock=clock)
    running, peak, calls = 0, 0, set()

    async def stream(item: int) -> Any:
        nonlocal running, peak
        running += 1
        peak = max(peak, running)
        for n in range(3):
            await asyncio.sleep(0.5)
            calls.add(current())
            yield (item, n)
        running -= 1

    async def outside(item: Any) -> Any:
        assert current() is None
        return item

    p = tn.Pipeline(range(6)).flat_map(stream, limit=limit, concurrency=adaptive, retry=retry)
    values = clock.run(p.map(outside).acollect())
    assert len(values) == 18
    assert peak == 2
    assert len(calls) == 6
    assert None not in calls
    assert held(limit, adaptive) == 0
    assert clock.now() == pytest.approx(4.5)


def test_what_a_fan_out_waits_for_room_is_not_the_providers_latency(clock: VirtualClock) -> None:
    adaptive = Adaptive(1, 1, clock=clock)

    async def stream(item: int) -> Any:
        for n in range(400):
            await asyncio.sleep(0.01)
            yield n

    async def slow(item: int) -> None:
        await asyncio.sleep(10)

    p = tn.Pipeline(range(2)).flat_map(stream, concurrency=adaptive).for_each(slow, concurrency=1)
    clock.run(p.arun())
    assert clock.now() > 8000
    assert adaptive.controller.latency == pytest.approx(4)


def test_each_stage_of_a_fused_segment_has_its_own_gate(clock: VirtualClock) -> None:
    slow = RateLimit(requests="1/s", burst=1, clock=clock)
    fast = RateLimit(requests="4/s", burst=1, clock=clock)
    seen: list[Any] = []

    async def ask(item: int) -> int:
        seen.append(current())
        return item

    async def free(item: int) -> int:
        assert current() is None
        return item

    p = tn.Pipeline(range(8)).map(free).map(ask, limit=fast).map(free).map(ask, limit=slow)
    report = clock.run(p.map(free).arun())
    assert report.done == 8
    assert len(set(seen)) == 16
    assert clock.now() == pytest.approx(7)
    assert [stage.items_out for stage in report.stages] == [8] * 5


@pytest.mark.parametrize("kind", ["filter", "tap", "for_each"])
def test_every_kind_is_admitted(clock: VirtualClock, kind: str) -> None:
    limit = RateLimit(requests="1/s", burst=1, clock=clock)

    async def ask(item: int) -> bool:
        assert current() is not None
        return item != 1

    report = clock.run(getattr(tn.Pipeline(range(4)), kind)(ask, limit=limit).arun())
    assert report.outputs == (3 if kind == "filter" else 4)
    assert clock.now() == pytest.approx(3)


@pytest.mark.parametrize("on_loop", ["async", "def"])
def test_inline_runs_keep_to_the_rate_in_order(clock: VirtualClock, on_loop: str) -> None:
    limit = RateLimit(requests="2/s", burst=1, clock=clock)
    seen = []

    def plain(item: int) -> int:
        seen.append((item, clock.now()))
        assert current() is not None
        return item

    async def ask(item: int) -> int:
        return plain(item)

    p = tn.Pipeline(range(4))
    if on_loop == "async":
        p = p.map(ask, limit=limit, concurrency=Adaptive(1, 8, clock=clock))
    else:
        p = p.map(plain, blocking=True, limit=limit)
    assert clock.run(p.acollect(inline=True)) == [0, 1, 2, 3]
    assert seen == [(n, pytest.approx(n / 2)) for n in range(4)]


def test_a_batch_is_one_call_and_its_halves_are_admitted_anew(clock: VirtualClock) -> None:
    limit = RateLimit(requests="1/s", burst=1, clock=clock)
    costs: list[list[int]] = []
    calls = []

    def cost(rows: list[int]) -> int:
        costs.append(list(rows))
        return len(rows)

    async def embed(rows: list[int]) -> list[int]:
        calls.append((rows, current(), clock.now()))
        if 3 in rows:
            raise ValueError("poison")
        return rows

    p = tn.Pipeline(range(8), on_error="skip").map_batches(embed, size=4, limit=limit, cost=cost)
    report = clock.run(p.arun())
    assert (report.done, report.failed) == (7, 1)
    # 0-3, 4-7, and of the first 0-1, 2-3, 2, 3
    assert len(calls) == len({call for _, call, _ in calls}) == len(costs) == 6
    assert sorted(when for *_, when in calls) == pytest.approx([0, 1, 2, 3, 4, 5])
    assert held(limit) == 0


def test_a_batch_that_waited_takes_along_what_has_come(clock: VirtualClock) -> None:
    limit = RateLimit(requests="1/s", burst=1, clock=clock)
    sizes = []

    async def trickle() -> Any:
        for n in range(40):
            yield n
            await asyncio.sleep(0.2)

    async def embed(rows: list[int]) -> list[int]:
        sizes.append(len(rows))
        return rows

    p = tn.Pipeline(trickle).map_batches(embed, size=8, max_wait=0.05, limit=limit, concurrency=2)
    assert sorted(clock.run(p.acollect())) == list(range(40))
    assert max(sizes) > 2
    assert len(sizes) <= 12


def test_a_cost_that_raises_fails_its_item_alone(clock: VirtualClock) -> None:
    limit = RateLimit(tokens="1000/s", clock=clock)

    def cost(item: Any) -> Any:
        if item == 1:
            raise KeyError("no text")
        return "many" if item == 2 else 1

    p = tn.Pipeline(range(4), on_error="skip").map(same, limit=limit, cost=cost, concurrency=1)
    report = clock.run(p.arun())
    assert (report.done, report.failed) == (2, 2)
    errors = {failure.key: failure.error for failure in report.failures}
    assert isinstance(errors[1], KeyError)
    assert "stage same: cost= gave 'many'" in str(errors[2])
    assert report.stages[0].items_in == 4

    async def rows(batch: list[int]) -> list[int]:
        return batch

    p = tn.Pipeline(range(4), on_error="skip").map_batches(
        rows, limit=limit, cost=lambda batch: sum(cost(item) for item in batch if item != 2)
    )
    report = clock.run(p.arun())
    assert (report.done, [failure.key for failure in report.failures]) == (3, [1])
    assert held(limit) == 0


def test_a_timeout_is_told_to_adaptive(clock: VirtualClock) -> None:
    adaptive = Adaptive(1, 64, start=20, clock=clock)

    async def hang(item: int) -> None:
        await asyncio.sleep(100)

    p = tn.Pipeline([1], on_error="skip").for_each(hang, timeout=2, concurrency=adaptive)
    report = clock.run(p.arun())
    assert report.failed == 1
    assert adaptive.limit == 14
    assert held(adaptive) == 0
