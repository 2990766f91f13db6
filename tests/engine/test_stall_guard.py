"""A run in which nothing moves says which stage waits for what, and one that merely waits for its consumer says nothing."""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
from time import perf_counter

import pytest

import core_samples as samples
import tournant as tn
from tournant import limits
from tournant.engine import standstill
from tournant.pool.slots import cores

#: Seconds without movement in these tests.
SOON = 0.1


def line_of(fn, text):
    lines, first = inspect.getsourcelines(fn)
    return f"{inspect.getsourcefile(fn)}:{first + next(n for n, line in enumerate(lines) if text in line)}"


@pytest.fixture
def told(caplog):
    """The standstills that were logged."""
    caplog.set_level(logging.WARNING, logger="tournant")

    def texts():
        return [r.getMessage() for r in caplog.records if "nothing has moved" in r.getMessage()]

    return texts


async def until_told(told, count=1):
    due = perf_counter() + 20
    while len(told()) < count:
        assert perf_counter() < due, "nothing was told"
        await asyncio.sleep(0.005)


def run_until_told(pipeline_of, told, *, go=None, count=1):
    """Run a pipeline made with an event that is set once the standstill was told; return the report."""

    async def main():
        event = asyncio.Event() if go is None else go
        async with asyncio.TaskGroup() as group:
            run = group.create_task(pipeline_of(event).arun())
            await until_told(told, count)
            event.set()
        return run.result()

    return asyncio.run(main())


def test_a_call_that_hangs_on_the_loop_is_named_with_its_input_and_line(told):
    async def stage(key, go):
        if key == "b":
            await asyncio.shield(go.wait())
        return key

    def pipeline(go):
        async def hangs(key):
            return await stage(key, go)

        return tn.Pipeline(["a", "b", "c"], stall_after=SOON).map(hangs)

    report = run_until_told(pipeline, told)
    assert report.done == 3
    (warning,) = report.warnings
    assert "stage hangs: 1 call(s) in flight, for the input 'b'" in warning
    assert line_of(stage, "go.wait()") in warning
    assert "it went on after" in warning
    assert told()[0] in warning
    (finding,) = report.findings
    assert (finding.kind, finding.text) == ("stall", warning)
    assert finding.seconds >= SOON


@pytest.mark.parametrize("options", [{}, {"blocking": True}])
def test_a_call_that_hangs_in_a_thread_is_named_with_its_line(told, options):
    def hangs(key):
        if key == "b":
            go.wait(60)
        return key

    go = threading.Event()
    report = run_until_told(
        lambda _: tn.Pipeline(["a", "b"], stall_after=SOON).map(hangs, **options), told, go=go
    )
    assert "for the input 'b'" in report.warnings[0]
    assert line_of(hangs, "go.wait") in report.warnings[0]


def test_a_call_that_hangs_in_a_process_is_named(told, tmp_path):
    class Go:
        set = tmp_path.joinpath("go").touch

    report = run_until_told(
        lambda _: tn.Pipeline([str(tmp_path / "go")], stall_after=SOON).map(
            samples.waits_for_file, on="processes"
        ),
        told,
        go=Go,
    )
    assert "in the worker process" in report.warnings[0]
    assert "waits_for_file" in report.warnings[0]


def test_batches_and_generators_are_named_too(told):
    def pipeline(go):
        async def batch(values):
            await go.wait()
            return values

        return tn.Pipeline(["a", "b"], stall_after=SOON).map_batches(batch, size=2)

    report = run_until_told(pipeline, told)
    assert "stage batch: 1 call(s) in flight, for the input 'a' and 1 more" in report.warnings[0]

    def flat(go):
        async def children(key):
            yield key
            await go.wait()

        return tn.Pipeline(["a"], stall_after=SOON).flat_map(children)

    report = run_until_told(flat, told, count=2)
    assert "stage children: 1 call(s) in flight, for the input 'a', at " in report.warnings[0]


def test_who_waits_for_room_is_told_beside_the_cause(told):
    def pipeline(go):
        async def slow(value):
            await go.wait()

        return (
            tn.Pipeline(range(500), stall_after=SOON)
            .flat_map(samples.upto, on="threads")
            .for_each(slow, concurrency=2)
        )

    report = run_until_told(pipeline, told)
    warning = report.warnings[0]
    assert warning.index("in flight") < warning.index("room in front of slow")


def test_who_waits_for_a_slot_is_told_who_has_them(told, until):
    def hold(_value):
        go.wait(60)

    def pipeline(_):
        return (
            tn.Pipeline(range(64), stall_after=SOON)
            .map(hold, name="hold")
            .map(samples.same, name="next", timeout=60)
        )

    go = threading.Event()
    other = tn.Pipeline(range(64)).map(hold).start()
    try:
        assert until(lambda: other.snapshot().stages[0].running >= cores())
        report = run_until_told(pipeline, told, go=go)
    finally:
        go.set()
        other.wait()
    assert "for a slot: all" in told()[0]
    assert report.done == 64


def test_a_rate_says_until_when(told):
    async def ask(value):
        return value

    def pipeline(go):
        limit = limits.RateLimit(requests="1/s")
        return tn.Pipeline(["a", "b"], stall_after=SOON).map(ask, limit=limit)

    report = run_until_told(pipeline, told)
    assert "stage ask: 1 call(s) wait for its rate" in report.warnings[0]
    assert "1" in report.warnings[0]


def test_a_backoff_says_for_how_long(told):
    async def fails(value):
        if not go:
            go.append(True)
            raise error
        return value

    go = []
    error = OSError("not yet")
    error.retry_after = 0.6
    report = run_until_told(
        lambda _: tn.Pipeline([1], stall_after=SOON).map(fails, retry=tn.Retry(2, delay=0.01)), told
    )
    assert "1 attempt(s) wait for their backoff, the next for 0." in report.warnings[0]


def test_a_source_that_gives_nothing_is_told(told):
    def pipeline(go):
        async def source():
            yield 1
            await go.wait()

        return tn.Pipeline(source, stall_after=SOON).map(samples.same, on="loop")

    report = run_until_told(pipeline, told)
    assert "the source has given nothing, at " in report.warnings[0]
    assert __file__ in report.warnings[0]

    go = threading.Event()

    def blocking():
        yield 1
        go.wait(60)

    report = run_until_told(
        lambda _: tn.Pipeline(blocking, stall_after=SOON).map(samples.same), told, go=go, count=2
    )
    assert line_of(blocking, "go.wait") in report.warnings[0]


def test_what_barriers_and_batchers_hold_is_told(told):
    def ordered(go):
        async def first_waits(value):
            if value == 0:
                await go.wait()
            return value

        return tn.Pipeline(range(5), stall_after=SOON).map(first_waits).ordered()

    report = run_until_told(ordered, told)
    assert (
        "stage ordered holds 4 input(s) back until input number 1 has come through"
        in report.warnings[0]
    )

    def batched(go):
        async def source():
            yield 1
            await go.wait()

        return tn.Pipeline(source, stall_after=SOON).batch(10).map(samples.same, on="loop")

    report = run_until_told(batched, told, count=2)
    assert "fill a batch of 1 so far" in report.warnings[0]


def test_a_task_left_behind_is_what_a_call_waits_for(told):
    def pipeline(go):
        async def stage(value):
            asyncio.create_task(go.wait())  # noqa: RUF006 - the mistake
            return value

        return tn.Pipeline([1], stall_after=SOON).map(stage)

    assert "for the tasks that it left behind" in run_until_told(pipeline, told).warnings[0]


def test_it_is_told_again_when_it_has_lasted_twice_as_long(told):
    def pipeline(go):
        async def hangs(value):
            await go.wait()

        return tn.Pipeline([1], stall_after=0.05).map(hangs)

    report = run_until_told(pipeline, told, count=3)
    assert len(report.warnings) == 1


def test_a_consumer_that_takes_its_time_is_no_standstill(told):
    async def main():
        async with tn.Pipeline(range(200), stall_after=SOON).map(samples.same).open() as run:
            async for _ in run:
                await asyncio.sleep(2.5 * SOON)
                break
            # Results lie there, and nobody takes them.
            await asyncio.sleep(2.5 * SOON)

    asyncio.run(main())
    for _ in tn.Pipeline(range(2), stall_after=SOON).map(samples.same).iter():
        threading.Event().wait(2.5 * SOON)
    assert told() == []


def test_a_run_that_moves_says_nothing(told):
    async def takes_its_time(value):
        await asyncio.sleep(SOON / 2)
        return value

    report = tn.Pipeline(range(8), stall_after=SOON).map(takes_its_time, concurrency=1).run()
    assert report.warnings == ()
    assert told() == []


class Clock:
    """Looks at given times."""

    def __init__(self, run, after=10.0):
        self.now = 1000.0
        self.guard = standstill.Standstill(run)
        self.guard._after = self.guard._due = after
        self.guard._since = self.guard._looked = self.now

    def pass_by(self, seconds, moved=False):
        for _ in range(round(seconds / 0.05)):
            self.now += 0.05
            self.guard.look(self.now, moved)


@pytest.fixture
def clock(monkeypatch):
    class Run:
        pipeline = tn.Pipeline([1])
        warnings: list = []
        findings: list = []

    monkeypatch.setattr(standstill, "describe", lambda run: "somebody waits")
    Run.warnings, Run.findings = [], []
    clock = Clock(Run)
    clock.warnings = Run.warnings
    return clock


def test_intervals_double_and_begin_anew_after_movement(clock, told):
    clock.pass_by(75)
    assert [text.split(":")[0].rsplit("for ")[-1] for text in told()] == ["10 s", "20 s", "40 s"]
    clock.pass_by(0.05, moved=True)
    clock.pass_by(12)
    assert len(clock.warnings) == 2
    assert "it went on after 75 s" in clock.warnings[0]


def test_a_loop_that_stood_still_itself_is_not_held_against_the_run(clock, told):
    clock.pass_by(5)
    clock.now += 60
    clock.pass_by(4)
    assert told() == []


def test_the_time_comes_from_the_pipeline_or_the_environment(monkeypatch):
    assert standstill.stall_after(None) == 30
    monkeypatch.setenv("TOURNANT_STALL_AFTER", "7.5")
    assert standstill.stall_after(None) == 7.5
    assert standstill.stall_after(3) == 3
    for nonsense in ("", "soon", "-1", "0"):
        monkeypatch.setenv("TOURNANT_STALL_AFTER", nonsense)
        assert standstill.stall_after(None) == 30
    for wrong in (0, -1, "soon", True):
        with pytest.raises(tn.InvalidPipeline, match="stall_after"):
            tn.Pipeline([1], stall_after=wrong)
