"""One run from start to end: stopping, draining, cancelling, sharing, nesting."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

import core_samples as samples
import tournant as tn
from core_samples import PLACES
from tournant import sync
from tournant.pool import lanes


async def same(value):
    return value


# Failing.


@pytest.mark.parametrize("place", sorted(PLACES))
def test_a_failure_stops_the_run_and_says_which_item_in_which_stage(place):
    pipeline = tn.Pipeline(range(10**9)).map(samples.fail_on_seven, **PLACES[place]).map(same)
    with pytest.raises(tn.PipelineFailed) as caught:
        pipeline.run(inline=place == "inline")
    failed = caught.value
    assert isinstance(failed.exceptions[0], ValueError)
    assert "in stage fail_on_seven, on input 7" in failed.exceptions[0].__notes__
    assert [(f.stage, f.key) for f in failed.failures] == [("fail_on_seven", 7)]
    report = failed.report
    assert report.sourced == report.done + report.failed + report.interrupted < 10**9
    assert 'on_error="skip"' in str(failed)


def test_except_star_keeps_the_report():
    try:
        tn.Pipeline([1]).map(samples.fail_on_odd).run()
    except* ValueError as group:
        assert group.report.failed == 1
        assert group.failures[0].key == 0


def test_what_is_in_flight_when_an_item_fails_is_finished():
    started, done = [], []

    async def main():
        meet = asyncio.Event()

        async def fn(value):
            started.append(value)
            if value == 0:
                while len(started) < 4:
                    await asyncio.sleep(0)
                meet.set()
                raise ValueError
            await meet.wait()
            await asyncio.sleep(0.01)
            done.append(value)

        with pytest.raises(tn.PipelineFailed) as caught:
            await tn.Pipeline(range(100)).for_each(fn, concurrency=4).arun()
        return caught.value.report

    report = asyncio.run(main())
    assert sorted(done) == [1, 2, 3]
    assert len(started) == 4
    assert (report.done, report.failed) == (3, 1)


def test_a_stage_may_skip_where_the_pipeline_stops_and_the_other_way_round():
    report = tn.Pipeline(range(10)).map(samples.fail_on_odd, on_error="skip").run()
    assert (report.done, report.failed) == (5, 5)
    with pytest.raises(tn.PipelineFailed):
        tn.Pipeline(range(10), on_error="skip").map(samples.fail_on_odd, on_error="stop").run()


def test_a_run_that_stops_wakes_who_waits_for_a_permit_of_a_fused_stage():
    """Many workers wait at the gate of a stage with one permit when its call fails."""

    async def main():
        waiting = 0

        async def first(value):
            nonlocal waiting
            waiting += 1
            return value

        async def second(value):
            while waiting < 20:
                await asyncio.sleep(0)
            raise ValueError(value)

        with pytest.raises(tn.PipelineFailed) as caught:
            await (
                tn.Pipeline(range(100)).map(first, concurrency=40).map(second, concurrency=1).arun()
            )
        assert caught.value.report.failed == 1

    asyncio.run(main())


def test_inputs_that_complete_after_a_failure_has_stopped_the_run_do_not_keep_it_going():
    """Some of the failed item's chunk-mates complete their input in front of a barrier in the very moment of the stop."""

    def nothing_but(n):
        if n == 1500:
            raise ValueError
        return []

    for barrier in ("gather", "ordered"):
        pipeline = getattr(tn.Pipeline(range(3000)).flat_map(nothing_but), barrier)()
        with pytest.raises(tn.PipelineFailed):
            pipeline.run()


@pytest.mark.parametrize(
    ("limit", "stops"), [(4, True), (5, False), (0.4, True), (0.5, False), (0, True)]
)
@pytest.mark.parametrize("place", ["loop", "threads"])
def test_max_failures_is_a_count_or_a_share(limit, stops, place):
    items = [1] * 5 + [2] * 5
    pipeline = tn.Pipeline(items, on_error="skip", max_failures=limit).map(
        samples.fail_on_odd, **PLACES[place]
    )
    if stops:
        with pytest.raises(tn.TooManyFailures, match="max_failures") as caught:
            pipeline.run()
        assert caught.value.report.failed >= 1
    else:
        report = pipeline.run()
        assert (report.done, report.failed) == (5, 5)


def test_a_share_of_failures_stops_a_long_run_before_its_end():
    with pytest.raises(tn.TooManyFailures) as caught:
        tn.Pipeline(range(100_000), on_error="skip", max_failures=0.1).map(
            samples.fail_on_odd
        ).run()
    assert caught.value.report.sourced < 100_000


# Draining and cancelling.


@pytest.mark.parametrize("place", ["loop", "threads", "processes", "blocking"])
def test_a_drain_finishes_what_was_taken_in(place):
    def endless():
        n = 0
        while True:
            yield n
            n += 1

    got = []

    async def main():
        async with tn.Pipeline(endless).map(samples.same, **PLACES[place]).open() as run:
            async for value in run:
                got.append(value)
                if len(got) == 50:
                    run.drain()
        return run.report

    report = asyncio.run(main())
    assert report.done == report.outputs == len(got) >= 50
    assert report.failed == report.filtered == 0


@pytest.mark.parametrize("how", ["drain", "cancel"])
def test_a_run_can_be_stopped_from_any_thread(how):
    def endless():
        n = 0
        while True:
            yield n
            n += 1

    def stop(run):
        threading.Thread(target=getattr(run, how)).start()

    seen = []

    async def sink(value):
        await asyncio.sleep(0.001)

    report = tn.Pipeline(endless).for_each(sink, concurrency=2).run(on_start=stop)
    del seen
    assert report.sourced == report.done + report.interrupted


@pytest.mark.parametrize("place", ["loop", "processes"])
def test_a_cancelled_run_does_not_wait_for_calls_that_never_end(place, tmp_path, until):
    path = tmp_path / "there"

    async def hang(_value):
        path.touch()
        await asyncio.Event().wait()

    async def main():
        pipeline = (
            tn.Pipeline([str(path)]).map(hang)
            if place == "loop"
            else tn.Pipeline([str(path)]).map(samples.touches_then_hangs, on="processes")
        )
        async with pipeline.open() as run:
            await asyncio.to_thread(until, path.exists)
            run.cancel()
        return run.report

    report = asyncio.run(main())
    assert (report.sourced, report.interrupted) == (1, 1)


def test_a_cancelled_call_may_clean_up():
    cleaned = []

    async def main():
        inside = asyncio.Event()

        async def careful(value):
            try:
                inside.set()
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0.01)
                cleaned.append(value)

        async with tn.Pipeline([1]).map(careful).open():
            await inside.wait()

    asyncio.run(main())
    assert cleaned == [1]


def test_cancelling_the_caller_cancels_the_run():
    async def main():
        inside = asyncio.Event()

        async def hang(value):
            inside.set()
            await asyncio.Event().wait()

        task = asyncio.create_task(tn.Pipeline([1]).map(hang).arun())
        await inside.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())


def test_a_second_cancellation_does_not_leave_the_run_half_closed():
    async def main():
        inside, cleaning = asyncio.Event(), asyncio.Event()

        async def slow_to_leave(value):
            inside.set()
            try:
                await asyncio.Event().wait()
            finally:
                cleaning.set()
                await asyncio.sleep(0.02)

        async def consume():
            async with tn.Pipeline([1]).map(slow_to_leave).open() as run:
                async for _ in run:
                    pass

        task = asyncio.create_task(consume())
        await inside.wait()
        task.cancel()
        await cleaning.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert not sync._hosting

    asyncio.run(main())


def test_a_call_that_swallows_its_cancellation_is_named_and_not_waited_for(monkeypatch):
    from tournant.engine import run as engine

    monkeypatch.setattr(engine, "_CANCEL_SECONDS", 0.05)

    async def main():
        inside, stop = asyncio.Event(), asyncio.Event()

        async def stubborn(value):
            inside.set()
            while not stop.is_set():
                try:
                    await stop.wait()
                except asyncio.CancelledError:
                    pass

        async with tn.Pipeline([1]).map(stubborn).open() as run:
            await inside.wait()
        stop.set()
        return run.report

    report = asyncio.run(main())
    assert any("after they were cancelled" in warning for warning in report.warnings)


def test_an_on_start_that_raises_ends_the_run():
    def broken(run):
        raise RuntimeError("no display")

    with pytest.raises(RuntimeError, match="no display"):
        tn.Pipeline(range(10)).map(same).run(on_start=broken)
    assert not sync._hosting


# Leaving nothing.


@pytest.mark.parametrize("place", sorted(PLACES))
@pytest.mark.parametrize("how", ["async with", "iter", "generator close", "to the end"])
def test_nothing_of_a_run_outlives_it(place, how, nothing_left):
    def source():
        yield from range(2000)

    inline = place == "inline"
    pipeline = (
        tn.Pipeline(source)
        .map(samples.same, **PLACES[place])
        .flat_map(samples.upto, on="loop")
        .ordered()
    )
    if how == "async with":

        async def main():
            async with pipeline.open(inline=inline) as run:
                async for _ in run:
                    break
            assert asyncio.all_tasks() == {asyncio.current_task()}
            report = run.report
            assert report.sourced == report.done + report.interrupted

        asyncio.run(main())
    elif how == "iter":
        for _ in pipeline.iter(inline=inline):
            break
        gc.collect()
    elif how == "generator close":
        iterator = pipeline.iter(inline=inline)
        next(iterator)
        iterator.close()
    else:
        tn.Pipeline(range(50)).map(samples.same, **PLACES[place]).run(inline=inline)
    assert not sync._hosting


def test_shutdown_in_the_middle_of_a_run_ends_it_with_an_error():
    inside, go_on = threading.Event(), threading.Event()
    caught = []

    def work(value):
        inside.set()
        go_on.wait(20)
        return value

    def run():
        try:
            tn.Pipeline(range(1000)).map(work).run()
        except tn.PoolClosed as error:
            caught.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    assert inside.wait(20)
    closer = threading.Thread(target=tn.shutdown)
    closer.start()
    while lanes._shared is not None:
        time.sleep(0.001)
    go_on.set()
    for waited in (thread, closer):
        waited.join(20)
        assert not waited.is_alive()
    assert len(caught) == 1
    assert caught[0].report.interrupted
    assert tn.Pipeline([1]).map(samples.inc).collect() == [2]


# Order and windows.


def test_a_slow_head_does_not_keep_up_to_window_others_from_starting():
    async def main():
        started = set()
        all_of_the_window = asyncio.Event()

        async def fn(value):
            started.add(value)
            if len(started) == 40:
                all_of_the_window.set()
            if value == 0:
                await all_of_the_window.wait()
            return value

        values = await tn.Pipeline(range(200)).map(fn, concurrency=4).ordered(window=40).acollect()
        assert values == list(range(200))

    asyncio.run(main())


def test_the_window_bounds_how_far_the_source_runs_ahead():
    async def main():
        started, gate = [], asyncio.Event()

        async def fn(value):
            started.append(value)
            if value == 0:
                await gate.wait()
            return value

        async with tn.Pipeline(range(1000)).map(fn).ordered(window=16).open() as run:
            while len(started) < 16:
                await asyncio.sleep(0)
            for _ in range(50):
                await asyncio.sleep(0.001)
            assert len(started) == 16
            gate.set()
            assert [value async for value in run] == list(range(1000))

    asyncio.run(main())


def test_an_input_that_fails_or_is_dropped_does_not_hold_up_the_order():
    pipeline = (
        tn.Pipeline(range(200), on_error="skip")
        .filter(lambda n: n % 3, on="loop")
        .map(samples.fail_on_odd)
        .ordered(window=3)
    )
    assert pipeline.collect() == [n for n in range(200) if n % 3 and n % 2 == 0]


# Consumers.


def test_a_consumer_that_stops_reading_bounds_the_run_and_nothing_spins():
    pulled = 0

    def source():
        nonlocal pulled
        while True:
            pulled += 1
            yield pulled

    async def main():
        async with tn.Pipeline(source).map(same).map(samples.same).ordered().open() as run:
            await anext(run)
            last = -1
            while pulled != last:
                last = pulled
                await asyncio.sleep(0.1)
            before = time.process_time()
            await asyncio.sleep(0.5)
            assert time.process_time() - before < 0.1
            assert pulled == last < 3000

    asyncio.run(main())


def test_a_result_counts_as_done_when_the_consumer_comes_back():
    async def main():
        async with tn.Pipeline(range(3)).map(same).open() as run:
            assert run.snapshot().done == 0
            await anext(run)
            await asyncio.sleep(0)
            assert run.snapshot().done == 0
            await anext(run)
            assert run.snapshot().done == 1
        return run.report

    # The one in whose middle the consumer left is counted too: it left by its own will.
    report = asyncio.run(main())
    assert (report.done, report.outputs) == (2, 2)


def test_a_consumer_that_works_on_a_result_keeps_the_memory_that_it_holds():
    """The next result is larger than the limit too, and waits until the consumer comes back."""

    async def blobs(n):
        for _ in range(50):
            yield b"x" * 100_000

    async def main():
        async with tn.Pipeline(range(3), memory_limit=50_000).flat_map(blobs).open() as run:
            await anext(run)
            await asyncio.sleep(0.2)
            assert run._running().budget.peak < 150_000
            return 1 + len([value async for value in run])

    assert asyncio.run(main()) == 150


# Where runs may run.


def test_waiting_on_a_runs_loop_is_refused_by_name():
    calls = {
        "pipeline.run()": lambda: tn.Pipeline([1]).map(samples.inc).run(),
        "pipeline.collect()": lambda: tn.Pipeline([1]).map(samples.inc).collect(),
        "pipeline.iter()": lambda: tn.Pipeline([1]).map(samples.inc).iter(),
        "tn.run()": lambda: tn.run(samples.inc, 1),
        "tn.map()": lambda: tn.map(samples.inc, [1]),
        "tn.for_each()": lambda: tn.for_each(samples.inc, [1]),
    }

    async def stage(name):
        with pytest.raises(tn.WouldDeadlock) as caught:
            calls[name]()
        return str(caught.value).startswith(name) and "def stage" in str(caught.value)

    assert tn.Pipeline(calls).map(stage).collect() == [True] * len(calls)

    async def on_the_callers_loop():
        return await tn.Pipeline(calls).map(stage).acollect()

    assert asyncio.run(on_the_callers_loop()) == [True] * len(calls)


def test_a_run_inside_a_foreign_running_loop_works():
    """As in a notebook."""

    async def cell():
        return sorted(tn.Pipeline(range(3)).map(same).map(samples.inc).collect()), list(
            tn.Pipeline(range(3)).map(same).iter()
        )

    assert asyncio.run(cell()) == ([1, 2, 3], [0, 1, 2])

    async def inline_cell():
        return tn.Pipeline(range(3)).map(samples.inc).collect(inline=True)

    assert asyncio.run(inline_cell()) == [1, 2, 3]


@pytest.mark.parametrize("outer", ["threads", "processes", "blocking", "inline"])
@pytest.mark.parametrize(
    "fn", [samples.nested_threads, samples.nested_processes, samples.nested_blocking]
)
def test_a_run_inside_a_stage_does_not_deadlock_though_all_slots_are_taken(outer, fn):
    count = lanes.shared().slots.count + 2
    if outer in ("processes", "inline"):
        count = 2
    values = tn.Pipeline([4] * count).map(fn, **PLACES[outer]).collect(inline=outer == "inline")
    assert values == [20 if fn is samples.nested_blocking else 10] * count


def test_an_async_run_inside_a_loop_stage_shares_the_pool():
    async def inner(n):
        return sum(await tn.Pipeline(range(n)).map(samples.inc).acollect())

    assert tn.Pipeline([4] * 6).map(inner).map(samples.inc).collect() == [11] * 6


def test_a_run_inside_a_thread_that_a_nested_run_started_does_not_wait_for_the_outer_slots():
    """A loop stage of a nested run hands a further run to a thread: it still stands on the outer run's slot."""

    async def middle(n):
        return await asyncio.to_thread(samples.nested_threads, n)

    def outer(n):
        return sum(tn.Pipeline([n, n]).map(middle).collect())

    count = lanes.shared().slots.count + 1
    assert tn.Pipeline([3] * count).map(outer).collect() == [12] * count


def test_two_runs_share_the_slots_and_both_finish():
    done = {"a": 0, "b": 0}
    at_the_first_end = []
    lock, together = threading.Lock(), threading.Barrier(2)

    def work(name):
        def fn(n):
            time.sleep(0.004)
            with lock:
                done[name] += 1
                if done[name] == 100:
                    at_the_first_end.append(dict(done))
            return n

        return fn

    results = []

    def run(name):
        together.wait(20)
        results.append(sorted(tn.Pipeline(range(100)).map(work(name)).collect()))

    threads = [threading.Thread(target=run, args=name) for name in done]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert results == [list(range(100))] * 2
    # Neither had to wait for the other's end.
    assert min(at_the_first_end[0].values()) >= 50


def test_a_cpu_stage_never_runs_on_more_workers_than_there_are_slots():
    inside, most, lock = 0, 0, threading.Lock()

    def work(value):
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        time.sleep(0.001)
        with lock:
            inside -= 1
        return value

    tn.Pipeline(range(60)).map(work).filter(work, max_workers=1).map(work, name="again").run()
    assert most <= lanes.shared().slots.count


def test_max_workers_caps_a_stage():
    inside, most, lock = 0, 0, threading.Lock()

    def work(value):
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        time.sleep(0.001)
        with lock:
            inside -= 1

    tn.Pipeline(range(40)).map(work, max_workers=1).run()
    assert most == 1


@pytest.mark.parametrize("place", ["loop", "threads", "blocking", "inline"])
def test_calls_run_in_the_callers_context_and_keep_their_own(place):
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")

    def fn(value):
        seen = variable.get()
        if place not in ("loop", "inline"):
            variable.set(f"{value}")
        return seen

    variable.set("the caller's")
    try:
        values = tn.Pipeline(range(30)).map(fn, **PLACES[place]).collect(inline=place == "inline")
    finally:
        variable.set("unset")
    assert set(values) == {"the caller's"}


def test_inline_runs_everything_in_the_callers_thread_in_order():
    threads, order = set(), []

    def fn(value):
        threads.add(threading.get_ident())
        order.append(value)
        return value

    async def coroutine(value):
        await asyncio.sleep(0)
        return fn(value)

    pipeline = tn.Pipeline(range(20)).map(fn, on="processes").map(coroutine).map(fn, blocking=True)
    assert pipeline.collect(inline=True) == list(range(20))
    assert threads == {threading.get_ident()}
    assert order == [n for n in range(20) for _ in range(3)]


# Ctrl-C.

INTERRUPTED = """
import sys, threading, time, os, signal
import tournant as tn

def work(value):
    if value >= 5:
        os.write(1, b"ready\\n")
        time.sleep(60)
    return value

def endless():
    n = 0
    while True:
        yield n
        n += 1

async def coroutine(value):
    return value

pipeline = tn.Pipeline(endless).map(coroutine).map(work, {options}).map(coroutine)
try:
    {call}
except KeyboardInterrupt:
    left = [t.name for t in threading.enumerate() if not t.name.startswith(("tournant-threads", "tournant-proc", "tournant-block", "tournant-watchdog"))]
    print("interrupted", [name for name in left if name != "MainThread"], flush=True)
    sys.exit(130)
"""


@pytest.mark.parametrize(
    "options",
    ['on="processes"', 'on="threads"', "blocking=True, concurrency=8", "on='processes', inline"],
)
@pytest.mark.parametrize("call", ["pipeline.run()", "for _ in pipeline.iter(): pass"])
def test_ctrl_c_cancels_a_run_and_cleans_up(options, call, tmp_path):
    if "inline" in options:
        if "iter" in call:
            pytest.skip("an inline run in a thread of its own can't be interrupted in a call")
        options, call = 'on="processes"', "pipeline.run(inline=True)"
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(INTERRUPTED).format(options=options, call=call))
    child = subprocess.Popen(
        [sys.executable, str(program)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert child.stdout.readline().strip() == "ready"
        # As from a terminal: to the whole group, workers included.
        os.killpg(child.pid, signal.SIGINT)
        out, err = child.communicate(timeout=20)
    finally:
        child.kill()
        child.wait()
    assert (out.splitlines()[-1], child.returncode) == ("interrupted []", 130), err
    assert err == ""


# Items that come one by one.


@pytest.mark.parametrize("stage", ["map", "map_batches", "flat_map", "for_each"])
def test_what_comes_while_every_worker_is_in_a_call_does_not_wait_for_it(stage):
    """The first call ends only when the second has begun, and the second item comes when the first call has."""

    async def main():
        began = [asyncio.Event(), asyncio.Event()]

        async def source():
            yield 0
            await began[0].wait()
            yield 1

        async def call(item):
            number = item[0] if isinstance(item, list) else item
            began[number].set()
            await asyncio.wait_for(began[1].wait(), 20)
            return item

        async def children(item):
            yield await call(item)

        options = {"size": 8, "max_wait": 0.001} if stage == "map_batches" else {}
        pipeline = tn.Pipeline(source, on_error="skip")
        fn = children if stage == "flat_map" else call
        report = await getattr(pipeline, stage)(fn, concurrency=4, **options).arun()
        assert report.done == 2, report

    asyncio.run(main())
