"""Runs with limits: how they stop, what they share, how they get on with a memory limit, and what they show."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from typing import Any

import pytest
from gate_samples import Refused, held, same

import tournant as tn
from tournant.engine.run import Run
from tournant.limits import Adaptive, RateLimit, VirtualClock, current


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


# Stopping.


def frozen(clock: VirtualClock) -> tuple[RateLimit, Adaptive]:
    return RateLimit(requests="10/s", burst=1, clock=clock), Adaptive(1, 8, clock=clock)


@pytest.mark.parametrize("kind", ["map", "flat_map", "map_batches"])
def test_a_halt_does_not_wait_for_a_freeze(clock: VirtualClock, kind: str) -> None:
    limit, adaptive = frozen(clock)

    async def ask(item: Any) -> Any:
        await asyncio.sleep(0.05)
        raise Refused(60)

    async def stream(item: Any) -> Any:
        await ask(item)
        yield

    fn = stream if kind == "flat_map" else ask
    size = {"size": 4} if kind == "map_batches" else {}
    p = getattr(tn.Pipeline(range(50)), kind)(fn, limit=limit, concurrency=adaptive, **size)

    async def main() -> None:
        with pytest.raises(tn.PipelineFailed) as caught:
            await p.arun()
        report = caught.value.report
        assert report is not None
        assert report.failed == (4 if kind == "map_batches" else 1)
        assert report.interrupted == report.sourced - report.failed > 0
        assert clock.now() < 1
        assert held(limit, adaptive) == 0

    clock.run(main())


@pytest.mark.parametrize("inline", [True, False])
@pytest.mark.parametrize("kind", ["map", "map_batches"])
def test_a_halt_does_not_wait_for_a_backoff_either(
    clock: VirtualClock, kind: str, inline: bool
) -> None:
    limit, _ = frozen(clock)

    async def ask(item: Any) -> Any:
        await asyncio.sleep(1)
        raise Refused(60)

    async def main() -> None:
        p = getattr(tn.Pipeline(range(3)), kind)(ask, limit=limit, retry=tn.Retry())
        for when in (0.5, 30):
            began = clock.now()
            run = Run(p, inline=inline)
            await run.start()
            await asyncio.sleep(when)
            run._halt()
            await run.wait()
            with contextlib.suppress(tn.PipelineFailed):
                await run.close()
            assert clock.now() - began <= when + 1
            assert held(limit) == 0

    clock.run(main())


def test_a_cancel_does_not_wait_for_a_freeze(clock: VirtualClock) -> None:
    limit, adaptive = frozen(clock)

    async def main() -> None:
        limit.throttled(60)
        p = tn.Pipeline(range(50)).map(same, limit=limit, concurrency=adaptive)
        async with p.open() as run:
            await asyncio.sleep(1)
            assert limit.snapshot().waiting == 8
            run.cancel()
        assert clock.now() < 2
        assert held(limit, adaptive) == 0

    clock.run(main())


def test_a_halt_in_the_middle_of_a_cancel_loses_nothing(clock: VirtualClock) -> None:
    limit, adaptive = frozen(clock)

    async def main() -> None:
        limit.throttled(60)
        p = tn.Pipeline(range(50)).map(same, limit=limit, concurrency=adaptive)
        run = Run(p)
        await run.start()
        await asyncio.sleep(1)
        run._halt()
        run._cancel()
        await run.wait()
        await run.close()
        assert clock.now() < 2
        assert held(limit, adaptive) == 0

    clock.run(main())


def test_a_drain_finishes_what_is_in_flight_after_the_freeze(clock: VirtualClock) -> None:
    limit, adaptive = frozen(clock)

    async def endless() -> Any:
        n = 0
        while True:
            yield n
            n += 1
            await asyncio.sleep(0.01)

    async def main() -> None:
        limit.throttled(20)
        p = tn.Pipeline(endless).for_each(same, limit=limit, concurrency=adaptive)
        async with p.open() as run:
            await asyncio.sleep(1)
            run.drain()
            async for _ in run:
                pass
        report = run.report
        assert report is not None
        assert report.done == report.sourced - report.interrupted > 10
        assert clock.now() > 20
        assert held(limit, adaptive) == 0

    clock.run(main())


# Together with others.


def test_runs_that_share_a_limit_share_it(clock: VirtualClock) -> None:
    limit = RateLimit(requests="10/s", burst=1, clock=clock)
    adaptive = Adaptive(1, 3, start=3, clock=clock)
    running, peak = 0, 0

    async def ask(item: int) -> None:
        nonlocal running, peak
        running += 1
        peak = max(peak, running)
        await asyncio.sleep(0.1)
        running -= 1

    p = tn.Pipeline(range(20)).for_each(ask, limit=limit, concurrency=adaptive)

    async def main() -> None:
        await asyncio.gather(p.arun(), p.arun())
        await p.arun()

    clock.run(main())
    assert clock.now() == pytest.approx(5.9 + 0.1, abs=0.2)
    assert peak <= 3
    assert held(limit, adaptive) == 0


def test_a_limit_and_a_memory_limit_go_together() -> None:
    async def read(item: int) -> bytes:
        await asyncio.sleep(0.05)
        return bytes(100_000)

    async def stream(item: bytes) -> Any:
        for _ in range(3):
            await asyncio.sleep(0.1)
            yield bytes(50_000)

    def seconds_and_bytes(rate: str | None) -> tuple[float, int]:
        clock = VirtualClock()
        limit = RateLimit(requests=rate, burst=1, clock=clock) if rate else None
        adaptive = Adaptive(1, 16, clock=clock)
        p = (
            tn.Pipeline(range(60), memory_limit=1_000_000)
            .map(read, limit=limit, concurrency=adaptive)
            .flat_map(stream, limit=limit, concurrency=8)
            .gather()
            .for_each(same)
        )

        async def main() -> int:
            run = Run(p)
            await run.start()
            await run.wait()
            assert (await run.close()).done == 60
            assert run.budget is not None
            return run.budget.peak

        peak = clock.run(main())
        assert held(adaptive) == 0
        assert limit is None or held(limit) == 0
        return clock.now(), peak

    seconds, peak = seconds_and_bytes("20/s")
    freely, most = seconds_and_bytes(None)
    assert seconds < 1.2 * freely
    assert peak < 1.2 * most


def test_a_freeze_is_no_standstill_that_lets_memory_grow(clock: VirtualClock) -> None:
    limit = RateLimit(requests="1000/s", clock=clock)

    async def main() -> None:
        limit.throttled(30)

        async def source() -> Any:
            for _ in range(200):
                yield bytes(10_000)

        p = tn.Pipeline(source, memory_limit=100_000).for_each(same, limit=limit, concurrency=4)
        run = Run(p)
        await run.start()
        await asyncio.sleep(20)
        assert run.source.sourced <= 10
        await run.wait()
        assert (await run.close()).done == 200

    clock.run(main())


def test_waiting_for_another_run_is_no_standstill_either(clock: VirtualClock) -> None:
    adaptive = Adaptive(1, 1, clock=clock)

    async def main() -> None:
        async def source() -> Any:
            for _ in range(200):
                yield bytes(10_000)

        p = tn.Pipeline(source, memory_limit=100_000).for_each(same, concurrency=adaptive)
        async with adaptive.slot():
            run = Run(p)
            await run.start()
            await asyncio.sleep(20)
            assert run.source.sourced <= 10
        await run.wait()
        assert (await run.close()).done == 200

    clock.run(main())


def test_a_fan_out_that_waits_for_memory_is_helped_though_others_wait_for_its_place(
    clock: VirtualClock,
) -> None:
    adaptive = Adaptive(1, 1, clock=clock)

    async def stream(item: int) -> Any:
        for _ in range(10):
            yield bytes(30_000)

    p = (
        tn.Pipeline(range(6), memory_limit=100_000)
        .flat_map(stream, concurrency=adaptive)
        .gather()
        .for_each(same)
    )
    assert clock.run(p.arun()).done == 6


def test_the_current_admission_of_an_outer_call_is_back_after_an_inner_run(
    clock: VirtualClock,
) -> None:
    limit = RateLimit(requests="100/s", clock=clock)
    inner = RateLimit(requests="100/s", clock=clock)

    async def ask(item: int) -> Any:
        return current()

    async def outer(item: int) -> int:
        mine = current()
        found = await tn.Pipeline(range(3)).map(ask, limit=inner).acollect()
        assert mine not in found
        assert len(set(found)) == 3
        assert await tn.Pipeline([1]).map(ask, limit=inner).map(look).acollect() == [mine]
        assert current() is mine
        return item

    async def look(item: Any) -> Any:
        return current()

    assert clock.run(tn.Pipeline([1]).map(outer, limit=limit).acollect()) == [1]


# What is shown.


def test_snapshot_and_report_tell_the_limits(clock: VirtualClock) -> None:
    limit = RateLimit(requests="600/min", burst=1, clock=clock)
    adaptive = Adaptive(1, 8, start=4, clock=clock)

    async def slow(item: int) -> None:
        await asyncio.sleep(0.01)

    async def main() -> tn.Report:
        p = tn.Pipeline(range(50)).map(same).for_each(slow, limit=limit, concurrency=adaptive)
        run = Run(p)
        await run.start()
        await asyncio.sleep(1)
        free, limited = run.snapshot().stages
        assert free.limits == ""
        assert limited.limits.startswith("requests 600/min (configured); ")
        assert "at once (slow start)" in limited.limits
        assert limited.limit == adaptive.limit
        await run.wait()
        return await run.close()

    report = clock.run(main())
    stage = report.stages[1]
    assert stage.rate_share == 1
    assert stage.limits.startswith("requests 600/min (configured)")
    assert report.bottleneck == "slow"
    text = str(report)
    assert "stage slow waited mostly for its rate 100% of the run: requests 600/min" in text
    assert report.as_dict()["stages"][1]["limits"] == stage.limits


@pytest.mark.parametrize("on", ["loop", "threads"])
def test_the_report_tells_how_many_calls_an_adaptive_let_go_and_not_that_none_is_left(
    on: str,
) -> None:
    together = threading.Barrier(3, timeout=10)

    def threads(item: int) -> None:
        together.wait()

    async def loop(item: int) -> None:
        await asyncio.to_thread(together.wait)

    options = {"on": on, "blocking": True} if on == "threads" else {}
    given = {"loop": loop, "threads": threads}[on]
    pipeline = tn.Pipeline(range(12)).map(given, concurrency=Adaptive(1, 3, start=3), **options)
    (stage,) = pipeline.run().stages
    assert stage.limits.startswith("up to 3 at once, limit 3 in the end (")


def test_a_rate_that_is_the_bottleneck_is_the_ceiling(clock: VirtualClock) -> None:
    limit = RateLimit(requests="400/s", burst=1, clock=clock)

    async def slow(item: int) -> None:
        await asyncio.sleep(0.001)

    p = tn.Pipeline(range(200)).map(same).for_each(slow, limit=limit)
    report = clock.run(p.arun())
    assert report.bottleneck == "slow"
    assert report.utilisation == report.stages[1].rate_share == 1
    assert report.ceiling == pytest.approx(200 / report.duration)


def test_a_limit_that_is_never_reached_is_not_the_bottleneck() -> None:
    async def slow(item: int) -> None:
        await asyncio.sleep(0.002)

    limit = RateLimit(requests="1000000/s")
    report = tn.Pipeline(range(50)).for_each(slow, limit=limit, concurrency=1).run()
    assert report.stages[0].rate_share == 0
    assert "waited" not in str(report)
    assert "stage slow: requests 1_000_000/s (configured)" in str(report)


def test_pipelines_in_two_threads_share_one_limit() -> None:
    limit = RateLimit(requests="200/s", burst=1, key="test-two-threads")
    p = tn.Pipeline(range(20)).for_each(same, limit=limit, concurrency=Adaptive(1, 4))
    began = time.monotonic()

    async def both() -> None:
        await asyncio.gather(asyncio.to_thread(p.run), asyncio.to_thread(p.run))

    asyncio.run(both())
    # 40 calls, of which the first is free: never faster than the rate, whatever the machine does.
    assert time.monotonic() - began >= 39 / 200
    assert held(limit) == 0
