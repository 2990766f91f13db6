"""Whoever would wait for what can only go on when they have stopped waiting is told so at once, and by name."""

from __future__ import annotations

import asyncio
import threading

import pytest

import core_samples as samples
import tournant as tn
from tournant import limits, sync


async def same(value):
    return value


def problem_of(pipeline):
    """The one failure of a run with `on_error="skip"`."""
    report = pipeline.run()
    (failure,) = report.failures
    return failure.error


def in_stage(call, **options):
    """What `call` raises inside a stage."""
    return problem_of(tn.Pipeline([1], on_error="skip").map(lambda _: call(), **options))


OTHER = tn.Pipeline(range(3)).map(samples.inc).ordered()


@pytest.mark.parametrize(
    ("call", "instead"),
    [
        (OTHER.run, "await pipeline.arun()"),
        (OTHER.collect, "await pipeline.acollect()"),
        (lambda: list(OTHER.iter()), "async with pipeline.open()"),
        (lambda: tn.run(samples.inc, 1), "await tn.arun()"),
        (lambda: tn.map(samples.inc, [1]), "acollect"),
        (lambda: tn.for_each(samples.inc, [1]), "arun"),
        (lambda: OTHER.start().wait(), "await pipeline.arun()"),
        (lambda: list(sync.iterate(OTHER.open())), "async for"),
    ],
)
def test_nobody_waits_on_the_loop_of_a_run(call, instead):
    error = in_stage(call, on="loop")
    assert isinstance(error, tn.WouldDeadlock)
    assert instead in str(error)


def test_an_iterator_from_outside_is_not_advanced_on_the_loop():
    iterator = OTHER.iter()
    assert next(iterator) == 1
    error = in_stage(lambda: list(iterator), on="loop")
    assert isinstance(error, tn.WouldDeadlock)
    assert "next() on pipeline.iter()" in str(error)


@pytest.mark.parametrize("options", [{}, {"blocking": True}, {"on": "processes"}])
def test_workers_may_run_pipelines_of_their_own(options):
    nested = samples.nested_threads
    assert tn.Pipeline([4] * 8).map(nested, **options).collect() == [10] * 8


def test_a_thread_that_the_loop_awaits_may_run_a_pipeline():
    async def stage(value):
        return await asyncio.to_thread(OTHER.collect)

    assert tn.Pipeline([1, 2]).map(stage).collect() == [[1, 2, 3]] * 2


def test_a_worker_may_wait_for_coroutines_on_the_runs_own_loop():
    """They are handed its context, so a run among them gets a slot of its own rather than those of the waiting workers."""

    async def main():
        loop = asyncio.get_running_loop()

        def stage(value):
            return asyncio.run_coroutine_threadsafe(OTHER.acollect(), loop).result(60)

        return await tn.Pipeline(range(8)).map(stage).acollect()

    assert asyncio.run(main()) == [[1, 2, 3]] * 8


# A run that waits for itself.


@pytest.mark.parametrize("way", ["wait", "iterate"])
def test_a_coroutine_stage_does_not_wait_for_its_own_run(way):
    async def main():
        handles = []

        async def stage(value):
            if way == "wait":
                return await handles[0].wait()
            return [item async for item in handles[0]]

        async with tn.Pipeline([1], on_error="skip").for_each(stage).open() as handle:
            handles.append(handle)
            report = await handle.wait()
        return report.failures[0].error

    error = asyncio.run(main())
    assert isinstance(error, tn.WouldDeadlock)
    assert "one of that run's own stages" in str(error)
    assert "drain() or cancel()" in str(error)


@pytest.mark.parametrize("options", [{}, {"blocking": True}])
def test_a_worker_does_not_wait_for_its_own_run(options):
    async def main():
        loop, handles = asyncio.get_running_loop(), []

        def stage(value):
            return asyncio.run_coroutine_threadsafe(handles[0].wait(), loop).result(60)

        async with tn.Pipeline([1], on_error="skip").for_each(stage, **options).open() as handle:
            handles.append(handle)
            return (await handle.wait()).failures[0].error

    assert "one of that run's own stages" in str(asyncio.run(main()))


@pytest.mark.parametrize("options", [{}, {"blocking": True}])
def test_neither_a_stage_nor_the_source_waits_for_its_own_run_in_the_background(options):
    handles, begun = [], threading.Event()

    def stage(value):
        begun.wait(60)
        return handles[0].wait()

    handles.append(tn.Pipeline([1], on_error="skip").map(stage, **options).start())
    begun.set()
    error = handles[0].wait().failures[0].error
    assert isinstance(error, tn.WouldDeadlock)

    begun.clear()

    def source():
        begun.wait(60)
        yield handles[1].wait()

    handles.append(tn.Pipeline(source).map(same).start())
    begun.set()
    with pytest.raises(tn.SourceFailed) as failed:
        handles[1].wait()
    assert isinstance(failed.value.__cause__, tn.WouldDeadlock)


def test_a_stage_may_end_its_own_run():
    async def main():
        handles = []

        async def stage(value):
            handles[0].drain()
            return value

        async with tn.Pipeline(range(100_000)).map(stage, concurrency=1).open() as handle:
            handles.append(handle)
            return await handle.wait()

    assert asyncio.run(main()).done < 100_000


# Work queued behind whoever waits for it.


def test_a_worker_does_not_wait_for_a_run_that_needs_the_workers():
    go = threading.Event()

    def waits(value):
        go.wait(60)
        return value

    other = tn.Pipeline([1]).map(waits).start()
    try:
        error = in_stage(other.wait)
        assert isinstance(error, tn.WouldDeadlock)
        assert "blocking=True" in str(error)
        # Where it takes no worker, or needs none, it may wait.
        go.set()
        assert in_stage_value(other.wait, blocking=True).done == 1
    finally:
        go.set()
    on_loop = tn.Pipeline([1]).map(same).start()
    assert in_stage_value(on_loop.wait).done == 1


def in_stage_value(call, **options):
    return tn.Pipeline([1]).map(lambda _: call(), **options).collect()[0]


def test_an_iterator_from_outside_is_not_advanced_on_a_worker_that_it_needs():
    iterator = tn.Pipeline(range(100_000)).map(samples.inc).iter()
    next(iterator)
    error = in_stage(lambda: [*iterator])
    assert isinstance(error, tn.WouldDeadlock)


def test_calls_that_hold_every_place_do_not_wait_for_another():
    adaptive = limits.Adaptive(min=2, max=2)

    async def stage(value):
        both.append(value)
        if len(both) == 2:
            there.set()
        await there.wait()
        async with limits.admit(concurrency=adaptive):
            return value

    async def main():
        nonlocal there
        there = asyncio.Event()
        return await tn.Pipeline([1, 2], on_error="skip").map(stage, concurrency=adaptive).arun()

    both, there = [], None
    report = asyncio.run(main())
    # One is refused and gives its place up, so the other gets through.
    assert (report.done, report.failed) == (1, 1)
    assert isinstance(report.failures[0].error, tn.WouldDeadlock)
    assert "an Adaptive of their own" in str(report.failures[0].error)
    assert adaptive.snapshot().running == 0
    assert not adaptive._holders


def test_calls_that_can_still_get_a_place_wait_for_it():
    adaptive = limits.Adaptive(min=2, max=2)

    async def stage(value):
        if value == 1:
            begun.append(True)
            while len(begun) < 2:
                await asyncio.sleep(0)
            async with limits.admit(concurrency=adaptive):
                return value
        begun.append(True)
        for _ in range(5):
            await asyncio.sleep(0)
        return value

    begun = []
    report = tn.Pipeline([1, 2]).map(stage, concurrency=adaptive).run()
    assert report.done == 2
    assert adaptive.snapshot().running == 0


# Collected in the wrong place.


@pytest.mark.parametrize("kind", ["iter", "iterate"])
def test_an_iterator_that_is_closed_on_its_own_loop_hangs_nobody(kind, until):
    """As it is when the collector frees it there."""
    ended, loops = threading.Event(), []

    async def items():
        loops.append(asyncio.get_running_loop())
        try:
            for n in range(10**9):
                await asyncio.sleep(0)
                yield n
        finally:
            ended.set()

    iterator = tn.Pipeline(items).map(same).iter() if kind == "iter" else sync.iterate(items())
    next(iterator)
    loops[0].call_soon_threadsafe(iterator.close)
    assert ended.wait(20)
    assert until(lambda: "tournant-loop" not in [t.name for t in threading.enumerate()])
