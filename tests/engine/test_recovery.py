"""Retries, timeouts, dead workers: only the item that is to blame fails."""

from __future__ import annotations

import asyncio
import functools
import os
import signal
import threading

import pytest

import core_samples as samples
import tournant as tn
from core_samples import PLACES

SOON = tn.Retry(attempts=3, delay=0.001)


def flaky(fails):
    """Return a function that fails `fails` times per value, and the counts of its calls."""
    calls: dict[object, int] = {}
    lock = threading.Lock()

    def fn(value):
        with lock:
            calls[value] = calls.get(value, 0) + 1
            now = calls[value]
        if now <= fails:
            raise ValueError(f"attempt {now}")
        return value

    return fn, calls


@pytest.mark.parametrize("place", ["loop", "threads", "blocking", "inline"])
def test_an_item_is_tried_again_until_it_succeeds(place):
    fn, calls = flaky(2)
    report = (
        tn.Pipeline(range(20)).map(fn, retry=SOON, **PLACES[place]).run(inline=place == "inline")
    )
    assert (report.done, report.failed) == (20, 0)
    assert set(calls.values()) == {3}
    (stage,) = report.stages
    assert (stage.retried, stage.items_in, stage.items_out) == (40, 20, 20)


@pytest.mark.parametrize("place", ["loop", "threads", "blocking", "inline"])
def test_attempts_are_the_limit_and_the_last_error_is_the_one_that_counts(place):
    fn, calls = flaky(99)
    pipeline = tn.Pipeline(["a"], on_error="skip").map(
        fn, retry=SOON, name="flaky", **PLACES[place]
    )
    report = pipeline.run(inline=place == "inline")
    (failure,) = report.failures
    assert (failure.attempts, str(failure.error)) == (3, "attempt 3")
    assert calls == {"a": 3}
    assert "in stage flaky, on input 'a', attempt 3 of 3" in failure.error.__notes__


@pytest.mark.parametrize("place", ["loop", "threads", "inline"])
def test_only_what_the_policy_names_is_tried_again(place):
    fn, calls = flaky(1)
    for on in (KeyError, (KeyError, OSError), lambda error: isinstance(error, KeyError)):
        calls.clear()
        report = (
            tn.Pipeline([1], on_error="skip")
            .map(fn, retry=tn.Retry(3, delay=0.001, on=on), **PLACES[place])
            .run(inline=place == "inline")
        )
        assert (report.failed, calls) == (1, {1: 1})


def test_a_predicate_that_raises_counts_as_no_and_says_so():
    fn, _ = flaky(1)
    report = tn.Pipeline([1], on_error="skip").map(fn, retry=tn.Retry(on=lambda e: 1 / 0)).run()
    assert any("predicate" in note for note in report.failures[0].error.__notes__)


def test_backoff_holds_no_worker_of_the_stage():
    """The only worker must take the other item while the first one waits for its second attempt."""
    other_done = threading.Event()
    attempts = []

    def fn(value):
        if value == "flaky":
            attempts.append(value)
            if len(attempts) == 1:
                raise ValueError
            assert other_done.is_set()
        else:
            other_done.set()
        return value

    retry = tn.Retry(2, delay=30, max_delay=30)
    for options in (
        {"on": "loop", "concurrency": 1},
        {"blocking": True, "concurrency": 1},
        {"max_workers": 1},
    ):
        other_done.clear()
        attempts.clear()
        with pytest.MonkeyPatch.context() as patch:
            # Long enough for the other item, and no longer than the test may take.
            patch.setattr(tn.Retry, "wait", lambda self, attempts: 0.05)
            out = tn.Pipeline(["flaky", "other"]).map(fn, retry=retry, **options).collect()
        assert out == ["other", "flaky"]


def test_a_retried_fan_out_passes_its_results_on_once():
    tried = []

    def fn(value):
        tried.append(value)
        yield value
        if len(tried) < 3:
            raise ValueError
        yield value

    for place in ("loop", "threads", "blocking"):
        tried.clear()
        assert tn.Pipeline([1]).flat_map(fn, retry=SOON, **PLACES[place]).collect() == [1, 1]


@pytest.mark.parametrize("place", ["loop", "threads"])
def test_a_failing_batch_is_retried_whole_then_halved(place):
    sizes = []

    def fn(values):
        sizes.append(len(values))
        if 5 in values:
            raise ValueError
        return values

    options = {"max_workers": 1} if place == "threads" else {"on": "loop", "concurrency": 1}
    report = (
        tn.Pipeline(range(8), on_error="skip")
        .map_batches(fn, size=8, retry=tn.Retry(2, delay=0.001), **options)
        .run()
    )
    assert (report.done, report.failed) == (7, 1)
    assert sizes == [8, 8, 4, 4, 2, 1, 1, 2]
    (stage,) = report.stages
    assert (stage.items_in, stage.items_out, stage.failed) == (8, 7, 1)


@pytest.mark.parametrize("place", ["threads", "blocking", "processes"])
def test_an_attempt_that_takes_too_long_fails_and_the_others_go_on(place):
    pipeline = tn.Pipeline(range(8), on_error="skip").map(
        samples.hangs_on_three, timeout=0.2, **PLACES[place]
    )
    report = pipeline.run()
    assert (report.done, report.failed) == (7, 1)
    (failure,) = report.failures
    assert (failure.key, type(failure.error)) == (3, tn.StageTimeout)
    assert isinstance(failure.error, TimeoutError)
    (stage,) = report.stages
    assert (stage.items_in, stage.items_out, stage.failed) == (8, 7, 1)
    assert any("still run a call that timed out" in w for w in report.warnings) == (
        place != "processes"
    )


def test_a_loop_stage_that_takes_too_long_is_cancelled():
    cancelled = []

    async def hang(value):
        if value == 3:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.append(value)
                raise
        return value

    report = tn.Pipeline(range(8), on_error="skip").map(hang, timeout=0.05).run()
    assert [f.key for f in report.failures] == cancelled == [3]
    assert type(report.failures[0].error) is tn.StageTimeout


def test_a_timeout_error_of_the_stages_own_is_not_taken_for_the_engines():
    async def own(value):
        raise TimeoutError("mine")

    report = tn.Pipeline([1], on_error="skip").map(own, timeout=10).run()
    assert type(report.failures[0].error) is TimeoutError


def test_more_hanging_threads_than_cores_do_not_bring_the_run_to_a_halt():
    stop = threading.Event()

    def hang(value):
        if value < 6:
            stop.wait(60)
        return value

    try:
        report = tn.Pipeline(range(20), on_error="skip").map(hang, timeout=0.06).run()
    finally:
        stop.set()
    assert (report.done, report.failed) == (14, 6)


def test_hanging_generators_fail_and_keep_what_they_gave():
    report = (
        tn.Pipeline(range(6), on_error="skip")
        .flat_map(samples.hangs_while_yielding, timeout=0.3, on="processes")
        .run()
    )
    assert (report.done, report.failed, report.outputs) == (5, 1, 6)


@pytest.mark.parametrize("place", ["loop", "threads", "blocking"])
def test_waiting_for_room_is_no_part_of_an_attempts_time(place):
    """The consumer of the results is slower than the timeout; the generator itself is quick."""

    def many(n):
        for i in range(4000):
            yield (n, i)

    gate = threading.Event()

    async def slow(value):
        if value[1] == 0:
            await asyncio.to_thread(gate.wait, 0.4)
        return value

    pipeline = (
        tn.Pipeline(range(3), on_error="skip")
        .flat_map(many, timeout=0.15, **PLACES[place])
        .map(slow, concurrency=1)
    )
    report = pipeline.run()
    assert (report.done, report.failed, report.outputs) == (3, 0, 12_000)


def test_a_timed_out_item_is_tried_again_as_the_policy_says(tmp_path):
    fn = functools.partial(_hangs_first, str(tmp_path / "mark"))
    for place in ("threads", "processes"):
        (tmp_path / "mark").unlink(missing_ok=True)
        report = tn.Pipeline([1]).map(fn, timeout=0.3, retry=SOON, **PLACES[place]).run()
        assert (report.done, report.stages[0].retried) == (1, 1)


def _hangs_first(path, value):
    if not os.path.exists(path):
        open(path, "w").close()
        threading.Event().wait(60)
    return value


# Workers that die.


@pytest.mark.parametrize("size", [8, 400])
def test_a_worker_killed_in_the_middle_loses_nothing(tmp_path, size):
    fn = functools.partial(samples.dies_once, str(tmp_path))
    report_values = []
    pipeline = tn.Pipeline(range(size)).map(fn, on="processes")
    report_values = pipeline.collect()
    assert (tmp_path / "died").exists()
    assert sorted(report_values) == list(range(size))


def test_the_death_that_a_neighbour_caused_is_not_put_on_an_items_account(tmp_path):
    """Each of four items that travel together kills its worker once; none of them twice."""
    fn = functools.partial(samples.each_of_some_dies_once, str(tmp_path))
    assert sorted(tn.Pipeline(range(500)).map(fn, on="processes").collect()) == list(range(500))
    assert len(list(tmp_path.glob("died-*"))) == 4


def test_a_fan_out_whose_worker_died_goes_on_where_it_was(tmp_path):
    fn = functools.partial(samples.dies_once_while_yielding, str(tmp_path))
    groups = tn.Pipeline(range(5)).flat_map(fn, on="processes").gather().collect()
    assert (tmp_path / "died").exists()
    assert sorted(groups) == [[(n, i) for i in range(400)] for n in range(5)]


@pytest.mark.parametrize("fn", [samples.exits_on_three, samples.segfaults_on_three])
def test_an_item_that_kills_its_worker_twice_fails_and_the_rest_succeed(fn):
    report = tn.Pipeline(range(40), on_error="skip").map(fn, on="processes").run()
    assert (report.done, report.failed) == (39, 1)
    (failure,) = report.failures
    assert (failure.key, type(failure.error)) == (3, tn.WorkerDied)
    how = "exit code 9" if fn is samples.exits_on_three else "SIGSEGV"
    assert how in str(failure.error)


def test_a_row_that_kills_its_worker_fails_alone_in_its_batch():
    report = (
        tn.Pipeline(range(16), on_error="skip")
        .map_batches(samples.exits_in_batch, size=8, on="processes")
        .run()
    )
    assert (report.done, report.failed) == (15, 1)
    assert [(f.key, type(f.error)) for f in report.failures] == [(3, tn.WorkerDied)]


def test_a_generator_that_kills_its_worker_fails_its_input_only():
    report = (
        tn.Pipeline(range(6), on_error="skip")
        .flat_map(samples.exits_while_yielding, on="processes")
        .gather()
        .run()
    )
    assert (report.done, report.failed, report.outputs) == (5, 1, 5)
    assert type(report.failures[0].error) is tn.WorkerDied


def test_an_idle_worker_that_was_killed_is_replaced(worker_processes):
    pipeline = tn.Pipeline(range(10)).map(samples.inc, on="processes")
    pipeline.run()
    for pid in worker_processes():
        os.kill(pid, signal.SIGKILL)
    assert sorted(pipeline.collect()) == list(range(1, 11))


# Values that don't travel.


def test_items_that_cant_be_sent_fail_alone():
    lock = threading.Lock()
    pipeline = tn.Pipeline([1, lock, 2, lock, 3], on_error="skip").map(samples.same, on="processes")
    assert sorted(pipeline.collect()) == [1, 2, 3]
    report = pipeline.run()
    assert [f.key for f in report.failures] == [1, 3]
    assert {type(f.error) for f in report.failures} == {tn.NotPicklable}
    assert 'on="threads"' in str(report.failures[0].error)


def test_items_that_cant_be_sent_are_not_mistaken_for_their_neighbours_in_a_fan_out():
    items = [threading.Lock(), 2, threading.Lock(), 3]
    groups = tn.Pipeline(items, on_error="skip").flat_map(slowly, on="processes").gather().collect()
    assert {g.key: list(g) for g in groups} == {1: [(2, 0), (2, 1)], 3: [(3, 0), (3, 1)]}


def slowly(value):
    for i in range(2):
        # Long enough for a part of its own: what was unsent in front must be told before the children.
        threading.Event().wait(0.03)
        yield (value, i)


def test_results_that_cant_be_sent_back_fail_alone():
    for fn in (samples.returns_lock, samples.returns_stubborn):
        pipeline = tn.Pipeline(range(12), on_error="skip").map(fn, on="processes")
        report = pipeline.run()
        assert (report.done, report.failed) == (11, 1), fn
        assert report.failures[0].key == 3
    assert isinstance(
        tn.Pipeline([3], on_error="skip")
        .map(samples.returns_lock, on="processes")
        .run()
        .failures[0]
        .error,
        tn.NotPicklable,
    )


def test_a_child_that_cant_be_sent_back_fails_its_input_and_the_others_go_on():
    pipeline = tn.Pipeline(range(6), on_error="skip").flat_map(samples.yields_lock, on="processes")
    assert sorted(pipeline.collect()) == list(range(6))
    report = pipeline.run()
    assert (report.done, report.failed, report.outputs) == (5, 1, 6)


def test_an_exception_that_cant_be_sent_back_has_a_stand_in_that_says_so():
    report = (
        tn.Pipeline(range(5), on_error="skip").map(samples.raises_unpicklable, on="processes").run()
    )
    (failure,) = report.failures
    assert type(failure.error) is tn.NotPicklable
    assert "Unpicklable" in str(failure.error)
    assert any("raised in a worker process" in note for note in failure.error.__notes__)


def test_an_exception_comes_back_with_the_workers_traceback():
    report = tn.Pipeline([7], on_error="skip").map(samples.fail_on_seven, on="processes").run()
    error = report.failures[0].error
    assert type(error) is ValueError
    assert any('raise ValueError("seven")' in note for note in error.__notes__)


def test_what_is_no_exception_fails_its_item_too():
    def leaves(value):
        if value == 1:
            raise SystemExit(3)
        return value

    for place in ("loop", "threads", "blocking", "inline"):
        report = (
            tn.Pipeline(range(3), on_error="skip")
            .map(leaves, **PLACES[place])
            .run(inline=place == "inline")
        )
        assert [type(f.error) for f in report.failures] == [tn.StageExit]
        assert report.done == 2


def test_a_cancelled_error_of_the_stages_own_fails_its_item():
    async def cancels(value):
        if value == 1:
            raise asyncio.CancelledError
        return value

    report = tn.Pipeline(range(3), on_error="skip").map(cancels).run()
    assert (report.done, report.failed) == (2, 1)
