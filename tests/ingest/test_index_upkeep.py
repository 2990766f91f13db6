from __future__ import annotations

import logging
import threading

import pytest

from tournant.ingest.indexes.upkeep import Upkeep, UpkeepPolicy


class Work:
    """Counts its runs; each may be held until it is let go."""

    def __init__(self, held: bool = False) -> None:
        self.runs = 0
        self.started = threading.Semaphore(0)
        self.gate = threading.Event()
        if not held:
            self.gate.set()

    def __call__(self) -> None:
        self.runs += 1
        self.started.release()
        assert self.gate.wait(30)


def write(upkeep: Upkeep, *rows: int) -> None:
    for count in rows:
        upkeep.wrote(count)
        upkeep.join()


def test_it_is_due_when_new_rows_are_a_share_of_the_old() -> None:
    work = Work()
    upkeep = Upkeep(
        work, settled=100, waiting=0, policy=UpkeepPolicy(rows=10, share=0.5, commits=1_000)
    )
    write(upkeep, 20, 29)
    assert work.runs == 0
    assert upkeep.behind
    write(upkeep, 1)
    assert work.runs == 1
    assert not upkeep.behind
    write(upkeep, 50, 24)
    assert work.runs == 1
    write(upkeep, 1)
    assert work.runs == 2


def test_it_is_never_due_for_few_rows() -> None:
    work = Work()
    write(Upkeep(work, 0, 0, UpkeepPolicy(rows=10, share=0.5, commits=1_000)), 3, 3, 3)
    assert work.runs == 0


def test_it_is_due_after_many_commits() -> None:
    work = Work()
    write(Upkeep(work, 10**6, 0, UpkeepPolicy(rows=10, share=0.5, commits=4)), 1, 0, 0)
    assert work.runs == 0
    write(Upkeep(work, 10**6, 0, UpkeepPolicy(rows=10, share=0.5, commits=4)), 1, 0, 0, 1)
    assert work.runs == 1


def test_what_is_written_meanwhile_waits_for_the_next_time() -> None:
    work = Work(held=True)
    upkeep = Upkeep(work, 0, 0, UpkeepPolicy(rows=10, share=0.5, commits=1_000))
    upkeep.wrote(10)
    assert work.started.acquire(timeout=30)
    upkeep.wrote(10)
    work.gate.set()
    upkeep.join()
    assert work.runs == 1
    assert upkeep.behind
    upkeep.run(work)
    assert not upkeep.behind


def test_a_failure_is_logged_and_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    failures = [RuntimeError("disk full")]

    def work() -> None:
        if failures:
            raise failures.pop()

    upkeep = Upkeep(work, 0, 0, UpkeepPolicy(rows=1, share=0.5, commits=1_000))
    with caplog.at_level(logging.WARNING):
        write(upkeep, 5)
    assert "disk full" in caplog.text
    assert upkeep.behind
    write(upkeep, 1)
    assert not upkeep.behind
    failures.append(RuntimeError("again"))
    with pytest.raises(RuntimeError, match="again"):
        upkeep.run(work)
