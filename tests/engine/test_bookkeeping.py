"""A pipeline with a ledger: what is done stays done, and a kill loses nothing."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time

import pytest

import core_samples as samples
import tournant as tn
from core_samples import PLACES


@pytest.fixture
def ledger(tmp_path):
    return tn.Ledger(tmp_path / "run.db")


def counting(fail=()):
    seen = []

    def fn(value):
        seen.append(value)
        if value in fail:
            raise ValueError(value)
        return value

    return fn, seen


@pytest.mark.parametrize("place", ["loop", "threads", "inline"])
def test_a_second_run_skips_what_is_done_without_computing_it(ledger, place):
    fn, seen = counting()
    pipeline = tn.Pipeline([f"k{n}" for n in range(50)], ledger=ledger).for_each(
        fn, **PLACES[place]
    )
    assert pipeline.run(inline=place == "inline").done == 50
    report = pipeline.run(inline=place == "inline")
    assert (report.sourced, report.skipped, report.done) == (50, 50, 0)
    assert len(seen) == 50


def test_what_failed_runs_again(ledger):
    bad = {3, 4}
    fn, seen = counting(bad)
    pipeline = tn.Pipeline(range(10), ledger=ledger, on_error="skip").for_each(fn, on="loop")
    assert pipeline.run().failed == 2
    assert {e.key: e.outcome for e in open_entries(ledger)}[3] == "failed"
    bad.clear()
    seen.clear()
    report = pipeline.run()
    assert (report.skipped, report.done) == (8, 2)
    assert sorted(seen) == [3, 4]


def open_entries(ledger):
    with ledger:
        return list(ledger.entries())


def test_a_changed_fingerprint_or_version_runs_again(ledger):
    prints = dict.fromkeys(range(5), 1)
    fn, seen = counting()

    def run(version=""):
        seen.clear()
        pipeline = tn.Pipeline(range(5), ledger=ledger, fingerprint=prints.get, version=version)
        pipeline.for_each(fn, on="loop").run()
        return sorted(seen)

    assert run() == [0, 1, 2, 3, 4]
    assert run() == []
    prints[2] = 2
    assert run() == [2]
    assert run("v2") == [0, 1, 2, 3, 4]
    assert run("v2") == []


def test_what_a_filter_dropped_is_settled_too(ledger):
    fn, _seen = counting()
    pipeline = (
        tn.Pipeline(range(10), ledger=ledger)
        .filter(samples.even, on="loop")
        .for_each(fn, on="loop")
    )
    assert pipeline.run().filtered == 5
    assert pipeline.run().skipped == 10


def test_an_input_is_done_only_after_the_sink_has_returned_for_all_its_descendants(ledger):
    async def main():
        at_the_last, go_on = asyncio.Event(), asyncio.Event()

        async def sink(value):
            if value == 4:
                at_the_last.set()
                await go_on.wait()

        task = asyncio.create_task(
            tn.Pipeline([5], key=lambda n: "input", ledger=ledger)
            .flat_map(samples.upto, on="loop")
            .for_each(sink)
            .arun()
        )
        await at_the_last.wait()
        # Long enough for whatever would be written too early.
        await asyncio.sleep(0.12)
        assert not await asyncio.to_thread(lambda: open_entries(tn.Ledger(ledger.path, lock=False)))
        go_on.set()
        await task

    asyncio.run(main())
    assert [(e.key, e.outcome, e.outputs) for e in open_entries(ledger)] == [("input", "done", 5)]


def test_what_was_interrupted_runs_again(ledger):
    pipeline = tn.Pipeline(range(1000), ledger=ledger).map(samples.same)
    first = []
    for value in pipeline.iter():
        first.append(value)
        if len(first) == 10:
            break
    second = pipeline.collect()
    # The result at which the consumer left may come again, and nothing else.
    assert len(set(first) & set(second)) <= 1
    assert set(first) | set(second) == set(range(1000))


def test_a_failed_run_keeps_what_was_done_before(ledger):
    bad = {60}
    fn, _seen = counting(bad)
    pipeline = tn.Pipeline(range(100), ledger=ledger).for_each(fn, on="loop", concurrency=1)
    with pytest.raises(tn.PipelineFailed) as caught:
        pipeline.run()
    done = caught.value.report.done
    bad.clear()
    report = pipeline.run()
    assert (report.skipped, report.done) == (done, 100 - done)


def test_a_ledger_that_cant_be_written_stops_the_run(ledger, monkeypatch):
    def full(self, entries):
        raise tn.LedgerError("the disk is full")

    monkeypatch.setattr(tn.Ledger, "record", full)

    def endless():
        n = 0
        while True:
            yield n
            n += 1

    with pytest.raises(tn.LedgerError, match="disk is full"):
        tn.Pipeline(endless, ledger=ledger).for_each(samples.same, on="loop").run()


def test_a_ledger_that_cant_be_opened_leaves_nothing_behind(tmp_path, nothing_left):
    ledger = tn.Ledger(tmp_path / "nowhere" / "run.db")
    with pytest.raises(tn.LedgerError):
        tn.Pipeline([1], ledger=ledger).map(samples.inc).run()
    from tournant import sync

    assert not sync._hosting


def test_one_ledger_serves_one_run_at_a_time(ledger):
    async def main():
        async with tn.Pipeline([1], ledger=ledger).map(samples.inc).open():
            with pytest.raises(tn.LedgerError):
                await tn.Pipeline([1], ledger=ledger).map(samples.inc).arun()

    asyncio.run(main())
    assert tn.Pipeline([2], ledger=ledger).map(samples.inc).run().sourced == 1


PROGRAM = """
import os, sqlite3, sys, time
import tournant as tn

folder = sys.argv[1]

def chunk(n):
    for i in range(n % 5):
        yield (n, i)

def work(pair):
    total = 0
    for k in range(300):
        total += k
    return pair

class Sink:
    # Idempotent: an input's rows are replaced in one transaction.
    def __init__(self):
        self.db = sqlite3.connect(os.path.join(folder, "sink.db"), timeout=60, isolation_level=None)

    def put(self, group):
        self.db.execute("BEGIN IMMEDIATE")
        self.db.execute("DELETE FROM rows WHERE input = ?", (group.key,))
        self.db.executemany("INSERT INTO rows VALUES (?, ?)", [(group.key, f"{n}-{i}") for n, i in group])
        self.db.execute("COMMIT")

def put(group, sink):
    sink.put(group)

report = (
    tn.Pipeline(range(1500), key=lambda n: n, ledger=tn.Ledger(os.path.join(folder, "run.db")))
    .flat_map(chunk, on="{on}")
    .map(work, on="{on}")
    .gather()
    .for_each(put, blocking=True, concurrency=1, state=tn.PerWorker(Sink))
    .run()
)
assert report.sourced == report.done + report.skipped == 1500
print("done", report.done, "skipped", report.skipped)
"""


@pytest.mark.parametrize("on", ["threads", "processes"])
def test_every_input_is_in_the_sink_exactly_once_though_the_program_is_killed_again_and_again(
    tmp_path, on
):
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(PROGRAM.replace("{on}", on)))
    db = sqlite3.connect(tmp_path / "sink.db", isolation_level=None)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("CREATE TABLE rows (input INTEGER, value TEXT)")
    rng = random.Random(7)
    kills = 0

    def stored():
        return db.execute("SELECT count(DISTINCT input) FROM rows").fetchone()[0]

    for _ in range(8):
        before = stored()
        child = subprocess.Popen(
            [sys.executable, str(program), str(tmp_path)], stdout=subprocess.DEVNULL
        )
        # At a random amount of progress rather than a time: so every kill hits a run at work.
        wanted = before + rng.randrange(1, 250)
        due = time.monotonic() + 30
        while child.poll() is None and stored() < wanted and time.monotonic() < due:
            time.sleep(0.001)
        if child.poll() is None:
            child.send_signal(signal.SIGKILL)
            kills += 1
        child.wait(30)
    last = subprocess.run(
        [sys.executable, str(program), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert last.returncode == 0, last.stderr
    skipped = int(last.stdout.split()[-1])
    rows = db.execute("SELECT value FROM rows").fetchall()
    db.close()
    assert sorted(value for (value,) in rows) == sorted(
        f"{n}-{i}" for n in range(1500) for i in range(n % 5)
    )
    assert kills >= 4
    # What the ledger had recorded was not computed again.
    assert skipped > 100
    assert os.path.exists(tmp_path / "run.db")
