"""Blocking stages with a limit: real threads, real time, small waits."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from gate_samples import Refused, held

import tournant as tn
from tournant.engine.pool_admission import Ticket
from tournant.engine.pool_segment import PoolSegment
from tournant.engine.run import Run
from tournant.limits import Adaptive, RateLimit, VirtualClock, current


def same(item: Any) -> Any:
    return item


def test_calls_begin_at_the_rate() -> None:
    limit = RateLimit(requests="100/s", burst=1)
    began = []

    def ask(item: int) -> int:
        began.append(time.monotonic())
        return item

    assert sorted(tn.Pipeline(range(21)).map(ask, blocking=True, limit=limit).collect()) == list(
        range(21)
    )
    # Never faster; slower where the machine is busy.
    assert began[-1] - began[0] >= 20 / 100 - 0.02
    assert held(limit) == 0


def test_the_callable_finds_its_admission_in_its_thread_and_settles_it() -> None:
    limit = RateLimit(tokens="1000/s", burst=1000)
    calls = set()

    def ask(item: int) -> None:
        call = current()
        assert call is not None
        calls.add(call)
        call.settle(0)

    def free(item: Any) -> None:
        assert current() is None

    p = tn.Pipeline(range(20)).tap(ask, blocking=True, limit=limit, cost=1000)
    assert p.tap(free, blocking=True).run().done == 20
    assert len(calls) == 20
    assert held(limit) == 0
    shown = limit.snapshot().tokens
    assert shown is not None
    assert shown.level == pytest.approx(1000)


def test_adaptive_says_how_many_threads_call() -> None:
    adaptive = Adaptive(1, 2, start=2)
    lock, running, peak = threading.Lock(), 0, 0

    def ask(item: int) -> None:
        nonlocal running, peak
        with lock:
            running += 1
            peak = max(peak, running)
        time.sleep(0.002)
        with lock:
            running -= 1

    p = tn.Pipeline(range(40)).for_each(ask, blocking=True, concurrency=adaptive)
    report = p.run()
    assert report.done == 40
    assert peak == 2
    assert report.stages[0].limit == 2
    assert held(adaptive) == 0


def test_adaptive_learns_from_calls_in_threads() -> None:
    adaptive = Adaptive(1, 1)
    assert tn.Pipeline([1]).for_each(same, blocking=True, concurrency=adaptive).run().done == 1
    assert adaptive.controller.latency is not None


def test_what_a_fan_out_waits_for_room_is_not_the_providers_latency() -> None:
    clock = VirtualClock()
    adaptive = Adaptive(1, 1, clock=clock)

    def stream(item: int) -> Iterator[int]:
        for n in range(3):
            clock.advance(2)
            yield n

    async def main() -> None:
        (segment,) = Run(
            tn.Pipeline([1]).flat_map(stream, blocking=True, concurrency=adaptive)
        ).segments
        assert isinstance(segment, PoolSegment)
        assert segment.gate is not None
        call = segment.gate.call(1)
        assert call.try_enter()
        for _ in segment.callable_of(segment.stages[0])(Ticket(1, call, None)):
            clock.advance(100)

    asyncio.run(main())
    assert adaptive.controller.latency == pytest.approx(6)
    assert held(adaptive) == 0


def test_a_result_that_is_a_throttle_is_asked_again() -> None:
    limit = RateLimit(
        requests="1000/s", is_throttle=lambda outcome: 0.01 if outcome == "busy" else None
    )
    answers = iter(["busy", "fine"])

    p = tn.Pipeline([1]).map(
        lambda item: next(answers), blocking=True, limit=limit, retry=tn.Retry(delay=0.001)
    )
    assert p.collect() == ["fine"]
    assert limit.snapshot().throttled == 1
    assert held(limit) == 0


@pytest.mark.parametrize("retry", [None, tn.Retry()])
def test_a_fan_out_is_admitted_until_its_generator_has_ended(retry: tn.Retry | None) -> None:
    limit = RateLimit(requests="10000/s")
    adaptive = Adaptive(1, 2, start=2)
    calls = []

    def stream(item: int) -> Iterator[Any]:
        for n in range(600):
            calls.append(current())
            assert 1 <= adaptive.snapshot().running <= 2
            yield (item, n)

    p = tn.Pipeline(range(4)).flat_map(
        stream, blocking=True, limit=limit, concurrency=adaptive, retry=retry
    )
    assert len(p.map(same, on="loop").collect()) == 2400
    assert len(set(calls)) == 4
    assert None not in calls
    assert held(limit, adaptive) == 0


def test_what_a_fan_out_gives_is_still_checked() -> None:
    limit = RateLimit(requests="10000/s", is_throttle=lambda outcome: outcome == "busy")

    def wrong(item: int) -> Any:
        return {0: "text", 1: ["fine", "busy"], 2: iter([1])}[item]

    report = (
        tn.Pipeline(range(3), on_error="skip").flat_map(wrong, blocking=True, limit=limit).run()
    )
    assert {f.key: type(f.error) for f in report.failures} == {0: TypeError, 1: tn.errors.Throttled}
    assert held(limit) == 0


def test_a_batch_is_one_call_and_its_halves_are_admitted_anew() -> None:
    limit = RateLimit(requests="10000/s")
    calls = []

    def embed(rows: list[int]) -> list[int]:
        calls.append(current())
        if 3 in rows:
            raise ValueError("poison")
        return rows

    p = tn.Pipeline(range(4), on_error="skip").map_batches(
        embed, size=4, blocking=True, limit=limit, cost=len
    )
    report = p.run()
    assert (report.done, report.failed) == (3, 1)
    assert len(calls) == len(set(calls)) == 5
    assert held(limit) == 0


def test_a_cost_that_raises_fails_its_item_alone() -> None:
    limit = RateLimit(tokens="1000/s")
    p = tn.Pipeline([1, 0, 2], on_error="skip").map(
        same, blocking=True, limit=limit, cost=lambda item: 1 / item
    )
    report = p.run()
    assert (report.done, report.failed) == (2, 1)
    assert isinstance(report.failures[0].error, ZeroDivisionError)
    assert held(limit) == 0


def test_state_is_handed_along() -> None:
    limit = RateLimit(requests="10000/s")
    p = tn.Pipeline([1]).map(
        lambda item, state: (item, state),
        blocking=True,
        limit=limit,
        state=tn.PerWorker(lambda: "client"),
    )
    assert p.collect() == [(1, "client")]


def test_a_call_that_overruns_is_told_to_adaptive_and_holds_nothing(
    until: Callable[..., bool],
) -> None:
    limit = RateLimit(requests="10000/s")
    adaptive = Adaptive(1, 64, start=20)
    go = threading.Event()

    def hang(item: int) -> None:
        go.wait(30)

    p = tn.Pipeline([1], on_error="skip").for_each(
        hang, blocking=True, timeout=0.1, limit=limit, concurrency=adaptive
    )
    report = p.run()
    assert isinstance(report.failures[0].error, tn.StageTimeout)
    assert adaptive.limit == 14
    assert held(limit, adaptive) == 0
    go.set()
    # The thread ends its call too, once it gets there, and that changes nothing.
    lanes = [t for t in threading.enumerate() if t.name.startswith("tournant-blocking-")]
    assert lanes
    tn.shutdown()
    assert until(lambda: not any(t.is_alive() for t in lanes))
    assert held(limit, adaptive) == 0
    assert adaptive.limit == 14


def test_a_halt_does_not_wait_for_a_freeze() -> None:
    limit = RateLimit(requests="1000/s", burst=1)
    adaptive = Adaptive(1, 8)

    def ask(item: int) -> None:
        raise Refused(3600)

    with pytest.raises(tn.PipelineFailed):
        tn.Pipeline(range(50)).for_each(ask, blocking=True, limit=limit, concurrency=adaptive).run()
    assert held(limit, adaptive) == 0


def test_leaving_early_does_not_wait_for_a_freeze_and_loses_no_permit() -> None:
    limit = RateLimit(requests="100/s", burst=4)
    adaptive = Adaptive(1, 8)

    def ask(item: int) -> int:
        if item == 3:
            limit.throttled(3600)
        return item

    p = tn.Pipeline(range(50)).map(ask, blocking=True, limit=limit, concurrency=adaptive)
    for _ in p.iter():
        break
    assert held(limit, adaptive) == 0


def test_two_runs_in_two_threads_share_one_limit() -> None:
    limit = RateLimit(requests="200/s", burst=1)
    p = tn.Pipeline(range(20)).for_each(
        same, blocking=True, limit=limit, concurrency=Adaptive(1, 4)
    )
    reports = []
    began = time.monotonic()
    threads = [threading.Thread(target=lambda: reports.append(p.run())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [report.done for report in reports] == [20, 20]
    assert time.monotonic() - began >= 39 / 200
    assert held(limit) == 0
