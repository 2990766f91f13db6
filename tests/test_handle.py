"""Streaming: a run in progress, as its user sees it."""

from __future__ import annotations

import asyncio
import threading

import pytest

import core_samples as samples
import tournant as tn
from tournant.errors import RunClosed


async def same(value):
    return value


def test_a_run_is_used_between_its_opening_and_its_end():
    async def main():
        handle = tn.Pipeline([1]).map(same).open()
        for use in (handle.snapshot, handle.drain, handle.cancel):
            with pytest.raises(RunClosed, match="not been opened"):
                use()
        async with handle as run:
            with pytest.raises(RunClosed, match="not ended yet"):
                run.report
            assert [value async for value in run] == [1]
            assert run.report.done == 1
        with pytest.raises(RunClosed, match="opened before"):
            async with handle:
                pass
        with pytest.raises(StopAsyncIteration):
            await anext(run)

    asyncio.run(main())


def test_a_failure_is_raised_to_whoever_iterates():
    async def main():
        async with tn.Pipeline([1]).map(samples.fail_on_odd).open() as run:
            async for _ in run:
                pass

    with pytest.raises(tn.PipelineFailed):
        asyncio.run(main())
    with pytest.raises(tn.PipelineFailed):
        list(tn.Pipeline([1]).map(samples.fail_on_odd).iter())


def test_a_failure_is_raised_when_the_block_is_left_without_iterating():
    async def main():
        async with tn.Pipeline([1]).map(samples.fail_on_odd).open() as run:
            while not run.snapshot().failed:
                await asyncio.sleep(0.001)

    with pytest.raises(tn.PipelineFailed):
        asyncio.run(main())


def test_an_error_of_the_block_itself_is_the_one_that_is_raised():
    async def main():
        async with tn.Pipeline(range(100)).map(samples.fail_on_odd).open() as run:
            async for _ in run:
                raise KeyError("mine")

    with pytest.raises((KeyError, tn.PipelineFailed)):
        asyncio.run(main())

    async def other():
        async with tn.Pipeline(range(100)).map(same).open() as run:
            async for _ in run:
                raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        asyncio.run(other())


def test_a_run_with_a_sink_is_waited_for():
    async def main():
        async with tn.Pipeline(range(10)).for_each(same).open() as run:
            report = await run.wait()
        assert report is run.report
        return report

    assert asyncio.run(main()).done == 10


def test_wait_takes_what_is_left():
    async def main():
        async with tn.Pipeline(range(300)).map(same).open() as run:
            await anext(run)
            return await run.wait()

    report = asyncio.run(main())
    assert (report.done, report.outputs) == (300, 300)


def test_a_source_that_cannot_start_leaves_nothing_open(tmp_path):
    async def main():
        handle = tn.Pipeline([1], ledger=tn.Ledger(tmp_path / "no" / "run.db")).map(same).open()
        with pytest.raises(tn.LedgerError):
            async with handle:
                pass
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())


def test_a_snapshot_may_be_taken_from_any_thread_at_any_time():
    stop = threading.Event()
    problems, seen, threads = [], [], []

    def watch(run):
        def look():
            while not stop.is_set():
                try:
                    snapshot = run.snapshot()
                except Exception as error:
                    problems.append(error)
                    return
                seen.append(snapshot)

        threads.append(threading.Thread(target=look, name="watcher"))
        threads[0].start()

    try:
        report = (
            tn.Pipeline(range(20_000))
            .map(same)
            .map(samples.inc)
            .map(samples.inc, on="processes", name="again")
            .run(on_start=watch)
        )
    finally:
        stop.set()
        threads[0].join(20)
    assert problems == []
    assert report.done == 20_000
    assert all(0 <= s.done <= s.sourced <= 20_000 for s in seen)
    assert all(
        stage.running >= 0 and stage.queued >= 0 and stage.busy >= 0
        for s in seen
        for stage in s.stages
    )
    assert [s.done for s in seen] == sorted(s.done for s in seen)


def test_two_consumers_of_one_run_share_its_results():
    async def main():
        async with tn.Pipeline(range(500)).map(same).open() as run:
            got: list[list[int]] = [[], []]

            async def consume(n):
                async for value in run:
                    got[n].append(value)
                    await asyncio.sleep(0)

            await asyncio.gather(consume(0), consume(1))
            return sorted(got[0] + got[1]), run.report

    values, report = asyncio.run(main())
    assert values == list(range(500))
    assert report.done == 500


def test_leaving_early_after_the_run_has_computed_everything_loses_nothing():
    """What was fetched ahead for a synchronous consumer who leaves is interrupted, not lost."""
    computed = threading.Event()
    left = 5

    async def work(number):
        nonlocal left
        left -= 1
        if not left:
            computed.set()
        return number

    results = tn.Pipeline(range(5)).map(work, concurrency=1).iter()
    assert next(results) == 0
    assert computed.wait(10)
    list(zip(range(3), results, strict=False))
    results.close()
