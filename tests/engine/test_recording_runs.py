"""What real runs leave behind: their recordings agree with their reports, whatever became of them."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import pickle
import signal
import threading
import time
import weakref
from dataclasses import FrozenInstanceError
from functools import partial
from itertools import pairwise

import pytest
from recording_checks import check_recording

import tournant as tn
from core_samples import inc, same
from tournant.limits import Adaptive, RateLimit
from tournant.observe import garbage
from tournant.observe.recording import CANCELLED, FAILED, RETRIED, Recording
from tournant.pool.lanes import shared


async def aself(value):
    await asyncio.sleep(0)
    return value


async def brief_nap(value):
    await asyncio.sleep(0.002)
    return value


def pid_of(_value):
    return os.getpid()


def thread_of(_value):
    return threading.current_thread().name


def sleepy(value):
    time.sleep(0.005)
    return value


def spin(value):
    """About a millisecond of work, so that each item is shown by itself."""
    total = 0
    for n in range(30_000):
        total += n
    return value


def die_on_three(folder, value):
    mark = os.path.join(folder, "died")
    if value == 3 and not os.path.exists(mark):
        with open(mark, "w", encoding="ascii"):
            pass
        os.kill(os.getpid(), signal.SIGKILL)
    return value


def stage_of(recording: Recording, name: str):
    number = [stage.name for stage in recording.stages].index(name)
    return [one for one in recording.slices if one.stage == number]


def lock_two_thirds(value):
    return threading.Lock() if value % 3 else value


class spin_and:
    """Works for a while, then calls."""

    def __init__(self, fn):
        self.fn = fn

    def __call__(self, value):
        spin(value)
        return self.fn(value)


class Boom(Exception):
    pass


class FailsAtFirst:
    """Fails the first attempt at every value that it is told."""

    def __init__(self, *values):
        self.left = set(values)

    def __call__(self, value):
        if value in self.left:
            self.left.discard(value)
            raise Boom(value)
        return value

    async def wait(self, value):
        await asyncio.sleep(0)
        return self(value)


# Where things ran.


def test_process_lanes_have_the_pids_of_the_workers_that_did_the_work():
    values: list[int] = []
    pipeline = tn.Pipeline(range(40)).map(spin, on="processes").map(pid_of, on="processes")

    async def main():
        async with pipeline.open() as run:
            async for value in run:
                values.append(value)
            return run.report

    recording = check_recording(asyncio.run(main()))
    lanes = [recording.lanes[n] for n in {one.lane for one in recording.slices}]
    assert {lane.pid for lane in lanes} == set(values)
    assert {lane.kind for lane in lanes} == {"process"}
    assert [lane.name for lane in recording.lanes] == [
        f"process {n}" for n in range(1, len(recording.lanes) + 1)
    ]


def test_thread_lanes_are_told_apart_and_belong_to_this_process():
    barrier = threading.Barrier(3, timeout=10)

    def meet(value):
        barrier.wait()
        return thread_of(value)

    pipeline = tn.Pipeline(range(3)).map(meet, blocking=True, on="threads", concurrency=3)
    report = pipeline.run()
    recording = check_recording(report)
    assert [lane.name for lane in recording.lanes] == [f"blocking thread {n}" for n in (1, 2, 3)]
    assert {lane.pid for lane in recording.lanes} == {os.getpid()}


def test_every_kind_of_stage_has_its_slices_and_an_inline_run_one_lane():
    pipeline = (
        tn.Pipeline(range(30))
        .map(aself)
        .flat_map(lambda n: [n] * (n % 3), on="threads")
        .map_batches(lambda rows: rows, size=4, on="threads")
        .gather()
        .ordered()
        .batch(size=7)
        .unbatch()
        .for_each(lambda group: None, on="loop")
    )
    recording = check_recording(pipeline.run())
    assert {one.stage for one in recording.slices} == set(range(len(recording.stages)))
    assert all(len(one.inputs) == 1 for one in stage_of(recording, "gather"))
    assert [len(one.inputs) for one in stage_of(recording, "batch")] == [7, 7, 7, 7, 2]
    inline = check_recording(pipeline.run(inline=True))
    assert [(lane.kind, lane.name) for lane in inline.lanes] == [("loop", "inline")]
    assert {one.stage for one in inline.slices} == set(range(len(inline.stages)))


def test_a_nested_run_has_a_recording_of_its_own():
    def inner(value):
        report = tn.Pipeline(range(3)).map(inc, on="threads").run()
        check_recording(report)
        return len(report.recording.slices)

    report = tn.Pipeline(range(2)).map(inner, on="threads").run()
    recording = check_recording(report)
    assert sum(one.items for one in recording.slices) == 2


def test_the_path_of_one_input_leads_through_all_its_stages():
    report = (
        tn.Pipeline([f"in-{n}" for n in range(10)])
        .map(aself)
        .map(spin, on="processes")
        .map(same, on="threads")
        .run()
    )
    recording = check_recording(report)
    number = next(n for n, span in recording.inputs.items() if span.key == "in-7")
    path = [one for one in recording.slices if number in one.inputs]
    assert [one.stage for one in path] == [0, 1, 2]
    span = recording.inputs[number]
    assert span.began <= path[0].began
    assert path[-1].ended <= span.ended
    assert all(a.ended <= b.began + 1e-9 for a, b in pairwise(path))


# Failures, retries, waits.


@pytest.mark.parametrize("place", ["loop", "async", "threads", "inline"])
def test_retries_and_failures_are_slices_of_their_own(place):
    fn = FailsAtFirst(2, 5)
    pipeline = tn.Pipeline(range(8), on_error="skip")
    again = {"retry": tn.Retry(2, delay=0.0001), "name": "again"}
    if place == "async":
        pipeline = pipeline.map(fn.wait, **again)
    else:
        pipeline = pipeline.map(fn, on="loop" if place == "inline" else place, **again)
    last = FailsAtFirst(3)
    pipeline = pipeline.map(last, on="threads", name="once")
    recording = check_recording(pipeline.run(inline=place == "inline"))
    retried = [one for one in recording.slices if one.outcome == RETRIED]
    assert sorted(one.inputs for one in retried) == [(2,), (5,)]
    assert {one.stage for one in retried} == {0}
    (failed,) = (one for one in recording.slices if one.outcome == FAILED)
    assert (failed.stage, failed.inputs, failed.items) == (1, (3,), 1)
    assert recording.inputs[3].outcome == "failed"
    assert recording.inputs[2].outcome == "done"


@pytest.mark.parametrize("where", ["before", "behind"])
def test_what_cannot_travel_to_a_worker_or_back_is_a_failure_with_the_time_that_it_took(where):
    """Two thirds can't be sent: of values no call is made, of results one has been."""
    values = [threading.Lock() if n % 3 else n for n in range(60)]
    pipeline = tn.Pipeline(values if where == "before" else range(60), on_error="skip")
    fn = same if where == "before" else lock_two_thirds
    report = pipeline.map(spin_and(fn), on="processes").map(same, on="processes").run()
    recording = check_recording(report)
    failed = [one for one in recording.slices if one.outcome == FAILED]
    assert sum(one.items for one in failed) == report.failed == 40
    spent = sum(one.ended - one.began for one in recording.slices)
    busy = sum(stage.busy for stage in report.stages)
    assert spent == pytest.approx(busy, rel=1e-6)
    assert {one.stage for one in failed} == {0}
    assert sum(one.items for one in recording.slices if one.stage == 1) == (
        20 if where == "before" else 60
    )


def test_an_input_that_is_not_gathered_is_seen_to_fail():
    report = (
        tn.Pipeline(range(4), on_error="skip")
        .flat_map(lambda n: [n, n + 10], on="loop")
        .map(FailsAtFirst(12), on="loop")
        .gather()
        .run()
    )
    recording = check_recording(report)
    outcomes = {one.inputs: one.outcome for one in stage_of(recording, "gather")}
    assert outcomes == {(0,): "ok", (1,): "ok", (2,): FAILED, (3,): "ok"}


@pytest.mark.parametrize("place", ["loop", "threads"])
def test_a_batch_with_a_poisoned_row_is_seen_to_be_halved(place):
    def refuse(rows):
        if 5 in rows:
            raise Boom(rows)
        return rows

    report = (
        tn.Pipeline(range(8), on_error="skip")
        .map_batches(refuse, size=8, on=place, max_wait=10.0)
        .run()
    )
    recording = check_recording(report)
    halved = [one.items for one in recording.slices if one.outcome == RETRIED]
    assert halved == [8, 4, 2]
    (failed,) = (one for one in recording.slices if one.outcome == FAILED)
    assert (failed.inputs, failed.items) == ((5,), 1)


def test_a_worker_that_dies_is_marked_and_what_it_held_is_seen_again(tmp_path):
    fn = partial(die_on_three, str(tmp_path))
    report = tn.Pipeline(range(6)).map(fn, on="processes", name="deadly").run()
    recording = check_recording(report)
    deaths = [mark for mark in recording.marks if "died" in mark.text]
    assert len(deaths) == 1
    assert "killed by SIGKILL" in deaths[0].text
    assert "deadly" in deaths[0].text
    assert any(one.outcome == RETRIED and 3 in one.inputs for one in recording.slices)


def test_a_call_that_took_too_long_is_seen_as_long_as_it_took():
    release = threading.Event()

    def hang(value):
        release.wait(10)

    pipeline = tn.Pipeline([0], on_error="skip").map(
        hang, on="threads", blocking=True, timeout=0.02
    )
    report = pipeline.run()
    release.set()
    recording = check_recording(report)
    (one,) = recording.slices
    assert one.outcome == FAILED
    assert one.ended - one.began >= 0.02


def test_what_was_waited_for_a_permit_is_seen():
    report = (
        tn.Pipeline(range(4)).map(aself, concurrency=4).map(brief_nap, concurrency=1, name="one")
    ).run()
    recording = check_recording(report)
    waits = sorted(one.waited for one in stage_of(recording, "one"))
    assert waits[0] == 0.0
    assert 0.0 < waits[1] < waits[2] < waits[3]
    assert sum(waits) == pytest.approx(report.stages[1].wait_limit, rel=0.1, abs=0.001)


def test_what_was_waited_for_a_core_is_seen():
    report = tn.Pipeline(range(200)).map(spin, on="processes").map(spin, on="threads").run()
    recording = check_recording(report)
    waited = sum(one.waited for one in recording.slices)
    expected = sum(stage.wait_slot for stage in report.stages)
    assert waited == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("blocking", [False, True])
def test_what_was_waited_at_a_limit_is_seen_and_so_is_the_limit(blocking):
    limit, adaptive = RateLimit(requests="1000/s", burst=1), Adaptive(1, 8)
    options = {"limit": limit, "concurrency": adaptive, "name": "ask"}
    at_first = adaptive.limit
    if blocking:
        pipeline = tn.Pipeline(range(9)).map(same, on="threads", blocking=True, **options)
    else:
        pipeline = tn.Pipeline(range(9)).map(aself, **options)
    report = pipeline.run()
    recording = check_recording(report)
    waited = sum(one.waited for one in stage_of(recording, "ask"))
    assert waited == pytest.approx(report.stages[0].wait_limit, rel=0.2)
    assert waited > 0.0
    names = {counter.name: counter for counter in recording.counters}
    assert names["concurrency: ask"].samples[0][1] == at_first
    assert names["rate: ask"].unit == "requests/s"
    assert names["rate: ask"].samples[0][1] == pytest.approx(1000.0)


# Runs that did not end well.


def test_a_failed_run_has_its_recording_in_the_error():
    def refuse(value):
        raise Boom(value)

    with pytest.raises(tn.PipelineFailed) as caught:
        tn.Pipeline(range(1000)).map(aself).map(refuse, on="threads").run()
    assert caught.value.report is not None
    recording = check_recording(caught.value.report)
    assert "failed" in {span.outcome for span in recording.inputs.values()}
    assert recording.summary == str(caught.value.report)


def test_a_cancelled_run_shows_what_was_given_up():
    started = threading.Barrier(4, timeout=10)
    runs: list[tn.Watched] = []

    async def forever(value):
        await asyncio.to_thread(started.wait)
        await asyncio.Event().wait()

    def cancel_it():
        started.wait()
        runs[0].cancel()

    canceller = threading.Thread(target=cancel_it)
    canceller.start()
    tn.Pipeline(range(20)).map(forever, concurrency=3).run(on_start=runs.append)
    canceller.join()
    assert runs[0].report is not None
    recording = check_recording(runs[0].report)
    assert [one.outcome for one in recording.slices] == [CANCELLED] * 3
    assert {span.outcome for span in recording.inputs.values()} == {"interrupted"}


def test_cancelling_a_run_shows_what_its_threads_were_at():
    started, release = threading.Event(), threading.Event()
    runs: list[tn.Watched] = []

    def wait(value):
        started.set()
        release.wait(10)

    def cancel_it():
        started.wait(10)
        runs[0].cancel()
        release.set()

    canceller = threading.Thread(target=cancel_it)
    canceller.start()
    pipeline = tn.Pipeline(range(20)).map(wait, on="threads", blocking=True, concurrency=2)
    pipeline.run(on_start=runs.append)
    canceller.join()
    report = runs[0].report
    assert report is not None
    recording = check_recording(report)
    assert {one.outcome for one in recording.slices} <= {CANCELLED, "ok"}
    assert CANCELLED in {one.outcome for one in recording.slices}


@pytest.mark.parametrize("on", ["threads", "processes"])
def test_how_much_of_their_time_workers_compute_is_measured(on):
    report = tn.Pipeline(range(20)).map(sleepy, on=on).batch(1).unbatch().map(spin, on=on).run()
    recording = check_recording(report)
    waits, _, _, computes = (stage.computing for stage in recording.stages)
    assert 0 <= waits < 0.15
    assert waits < computes <= 1


@pytest.mark.parametrize("barrier", ["gather", "ordered", "batch"])
def test_what_is_held_when_a_run_is_stopped_is_shown_as_given_up(barrier):
    runs: list[tn.Watched] = []
    arriving = 11 if barrier == "gather" else 12

    async def first_never(value):
        if value == 0:
            while runs[0].snapshot().stages[-1].items_in < arriving:
                await asyncio.sleep(0.001)
            runs[0].cancel()
            await asyncio.Event().wait()
        return [value, value]

    pipeline = tn.Pipeline(range(7)).map(first_never, concurrency=10).flat_map(list, on="loop")
    expected = 12
    if barrier == "gather":
        missing = [2]

        async def all_but_one(value):
            if value in missing:
                missing.remove(value)
                await asyncio.Event().wait()
            return value

        # Of one input only one of two children comes.
        pipeline = pipeline.map(all_but_one, concurrency=20).gather()
        expected = 1
    elif barrier == "ordered":
        pipeline = pipeline.ordered()
    else:
        pipeline = pipeline.batch(100)
    pipeline.run(on_start=runs.append)
    assert runs[0].report is not None
    recording = check_recording(runs[0].report)
    number = len(recording.stages) - 1
    held = [one for one in recording.slices if one.stage == number and one.outcome == CANCELLED]
    assert sum(one.items for one in held) == expected
    assert all(one.ended > one.began for one in held)


def test_of_a_run_that_overwrites_its_events_no_input_is_taken_for_unfinished(monkeypatch):
    monkeypatch.setenv("TOURNANT_EVENTS", "100")
    ended = []

    async def first_last(value):
        while value == 0 and len(ended) < 1999:
            await asyncio.sleep(0.001)
        ended.append(value)

    report = tn.Pipeline(range(2000)).for_each(first_last, concurrency=8).run()
    assert report.done == 2000
    recording = report.recording
    assert recording.lost
    assert {span.outcome for span in recording.inputs.values()} == {"done"}
    assert 0 in recording.inputs, "what ends last is kept, however early it began"


def test_a_stream_that_is_left_early_has_a_recording():
    async def main():
        async with tn.Pipeline(range(500)).map(aself, concurrency=2).open() as run:
            async for value in run:
                if value >= 20:
                    break
        return run.report

    report = asyncio.run(main())
    assert report.interrupted
    recording = check_recording(report)
    assert {span.outcome for span in recording.inputs.values()} == {"done", "interrupted"}


def test_what_the_ledger_knew_is_seen_as_skipped(tmp_path):
    pipeline = tn.Pipeline(
        [f"file-{n}" for n in range(5)], ledger=tn.Ledger(tmp_path / "run.db")
    ).for_each(same, on="threads")
    check_recording(pipeline.run())
    more = tn.Pipeline(
        [f"file-{n}" for n in range(-1, 7)], ledger=tn.Ledger(tmp_path / "run.db")
    ).for_each(same, on="threads")
    recording = check_recording(more.run())
    seen = {span.key: span.outcome for span in recording.inputs.values()}
    assert list(seen) == [f"file-{n}" for n in range(-1, 7)], "in the order of the source"
    assert [key for key, outcome in seen.items() if outcome == "done"] == [
        "file--1",
        "file-5",
        "file-6",
    ]


@pytest.mark.parametrize("source", ["list", "iterator", "async"])
def test_inputs_of_every_kind_of_source_have_their_keys(source):
    names = [f"n{n}" for n in range(20)]

    async def agen():
        for name in names:
            yield name

    given = {"list": names, "iterator": lambda: iter(names), "async": agen}[source]
    recording = check_recording(tn.Pipeline(given).map(same, on="loop").run())
    assert [span.key for span in recording.inputs.values()] == names


# What is kept, and for how long.


class Value:
    """Something that can be watched as it dies."""


def test_no_value_is_kept_alive():
    alive: list[weakref.ref] = []

    def source():
        for _ in range(20):
            value = Value()
            alive.append(weakref.ref(value))
            yield value

    def refuse(value):
        if len(alive) % 2:
            raise Boom("no")
        return value

    report = (
        tn.Pipeline(source, key=lambda value: (value, "x" * 500), on_error="skip")
        .map(aself)
        .map(same, on="threads")
        .batch(3)
        .unbatch()
        .gather()
        .for_each(same, on="threads")
        .run()
    )
    assert report.done == 20
    recording = report.recording
    assert all(len(span.key) <= 80 for span in recording.inputs.values())
    gc.collect()
    assert not [ref for ref in alive if ref() is not None]
    assert len(recording.inputs) == 20


def test_the_rings_are_bounded_and_say_what_they_lost(monkeypatch):
    monkeypatch.setenv("TOURNANT_EVENTS", "300")
    pipeline = (
        tn.Pipeline([f"key {n}" for n in range(5000)])
        .map(aself)
        .map(same, on="threads")
        .flat_map(lambda n: (n,), on="loop")
        .gather()
        .batch(7)
        .unbatch()
        .map_batches(same, on="loop", size=10)
    )
    report = pipeline.run()
    assert report.done == 5000
    events = report.events
    for calls in events.calls:
        assert sum(len(ends) for _, ends, _ in calls.blocks) <= 300
        assert len(calls.said) <= 300
        assert len(calls.waits) <= 300
    for ring in events.stretches.values():
        assert sum(len(stretch.who) for stretch in ring.kept) <= 1024, "one chunk is always kept"
    assert len(events.inputs.keys) <= 300
    assert sum(map(len, events.batches.values())) <= 300
    recording = report.recording
    for number, stage in enumerate(report.stages):
        assert 0 < sum(one.items for one in recording.slices if one.stage == number) < stage.items_in  # fmt: skip
    assert recording.lost > 5 * 4000
    assert 0 < len(recording.inputs) < 5000
    assert {life.outcome for life in recording.inputs.values()} == {"done"}
    assert max(recording.inputs) > 4000, "those that ended last are kept, not those that came last"


def test_it_can_be_switched_off(monkeypatch):
    monkeypatch.setenv("TOURNANT_EVENTS", "0")
    pipeline = tn.Pipeline(range(50), on_error="skip").map(aself).map(FailsAtFirst(3), on="threads")
    report = pipeline.batch(4).unbatch().gather().map_batches(same, on="loop").run()
    assert report.events is None
    recording = report.recording
    assert (recording.slices, recording.inputs) == ((), {})
    assert recording.summary == str(report)


def test_a_wrong_size_is_told_before_anything_runs(monkeypatch):
    monkeypatch.setenv("TOURNANT_EVENTS", "lots")
    with pytest.raises(tn.TournantError, match="TOURNANT_EVENTS='lots'"):
        tn.Pipeline([1]).map(same, on="loop").run()


def test_a_report_is_as_plain_as_before():
    report = tn.Pipeline(range(3)).map(same, on="loop").run()
    assert "events" not in report.as_dict()
    json.dumps(report.as_dict())
    assert "Events" not in repr(report)
    with pytest.raises(FrozenInstanceError):
        report.events = None
    before = report.recording
    travelled = pickle.loads(pickle.dumps(report))
    assert travelled == report
    assert travelled.recording == before
    assert tn.Report().recording == Recording(summary=str(tn.Report()))


def test_listening_to_the_garbage_collector_ends_with_the_run():
    before = list(gc.callbacks)
    during: list[int] = []

    def look(value):
        during.append(gc.callbacks.count(garbage._on_collection))
        return value

    tn.Pipeline(range(2)).map(look, on="loop").run()
    assert during == [1, 1]
    with pytest.raises(tn.PipelineFailed):
        tn.Pipeline([0]).map(FailsAtFirst(0), on="loop").run()
    assert gc.callbacks == before


def test_cores_are_those_of_the_pool():
    recording = tn.Pipeline(range(50)).map(spin, on="processes").run().recording
    assert recording.cores == shared().slots.count
    (cores,) = (counter for counter in recording.counters if counter.name == "cores")
    assert max(level for _, level in cores.samples) <= recording.cores
