from __future__ import annotations

import contextvars
import threading

import pytest

import core_samples as samples
import tournant as tn
from tournant.errors import PoolClosed
from tournant.pool import lanes
from tournant.pool.lanes import Pool, Spec, World


class Job:
    """A chunk of values without an engine around it."""

    def __init__(self, spec, values):
        self.spec, self.values = spec, values
        self.skip, self.hold, self.announce, self.abandoned = 0, False, False, False
        self.outbox = None
        self.results, self.error, self.news = [], None, []
        self.over = threading.Event()

    def began(self):
        self.news.append("began")

    def part(self, part):
        self.results += part.values
        if part.last:
            self.over.set()

    def wanted(self):
        return not self.abandoned

    def left(self):
        self.news.append("left")
        self.over.set()

    def failed(self, error):
        self.error = error
        self.over.set()

    def died(self, how):
        self.news.append(how)
        self.over.set()


def spec(fn=samples.inc, kind="map", state=None, **options):
    options.setdefault("takes_slot", True)
    return Spec([(kind, fn, state)], contextvars.copy_context(), World(), **options)


@pytest.fixture
def pool():
    pool = Pool(2)
    yield pool
    pool.close(20)


@pytest.mark.parametrize("kind", ["threads", "processes", "blocking"])
def test_a_lane_runs_a_chunk_and_is_idle_again(pool, kind):
    lane = pool.lane(kind)
    job = Job(spec(), [1, 2, 3])
    lane.submit(job)
    assert job.over.wait(20)
    assert job.results == [2, 3, 4]
    assert pool.lane(kind) is lane


@pytest.mark.parametrize("kind", ["threads", "processes"])
def test_a_job_that_was_abandoned_before_it_began_is_not_run(pool, kind):
    lane = pool.lane(kind)
    job = Job(spec(), [1])
    job.abandoned = True
    lane.submit(job)
    assert job.over.wait(20)
    assert (job.results, job.news) == ([], ["left"])


def test_only_the_process_that_works_on_a_job_is_killed_for_it(pool, tmp_path):
    lane = pool.lane("processes")
    first, second = Job(spec(), [1]), Job(spec(samples.waits_for_file), [str(tmp_path / "go")])
    lane.submit(first)
    assert first.over.wait(20)
    lane.submit(second)
    lane.kill(first)
    (tmp_path / "go").touch()
    assert second.over.wait(20)
    assert second.results == ["go"]


def test_the_job_whose_process_is_killed_hears_of_it(pool, tmp_path, until):
    lane = pool.lane("processes")
    job = Job(spec(samples.touches_then_hangs), [str(tmp_path / "there")])
    lane.submit(job)
    assert until((tmp_path / "there").exists)
    assert lane.kill(job)
    assert job.over.wait(20)
    assert job.news == ["killed by SIGKILL"]
    assert pool.lane("processes") is lane
    again = Job(spec(), [1])
    lane.submit(again)
    assert again.over.wait(20)
    assert again.results == [2]


def test_a_thread_cant_be_killed(pool):
    assert pool.lane("threads").kill(Job(spec(), [])) is False


def test_a_lane_outlives_what_goes_wrong_while_it_gets_ready(pool):
    lane = pool.lane("processes")
    state = tn.PerWorker(dict, close=threading.Lock().acquire)
    lane.warm(spec(state=state))
    job = Job(spec(), [1])
    lane.submit(job)
    assert job.over.wait(20)
    assert job.results == [2]
    bad = Job(spec(state=state), [1])
    pool.lane("processes").submit(bad)
    assert bad.over.wait(20)
    assert "pickle" in str(bad.error)


def test_a_factory_is_called_once_and_its_failure_told_to_every_chunk(pool):
    calls = []

    def factory():
        calls.append(1)
        raise OSError("no model")

    broken = spec(state=tn.PerWorker(factory))
    lane = pool.lane("threads")
    for _ in range(2):
        job = Job(broken, [1])
        lane.submit(job)
        assert job.over.wait(20)
        assert str(job.error) == "no model"
    assert calls == [1]


def test_code_on_a_slot_knows_and_code_on_a_blocking_lane_does_not(pool):
    def asks(_):
        return lanes.holds_slot()

    for kind, expected in (("threads", True), ("blocking", False)):
        job = Job(spec(asks, takes_slot=kind == "threads"), [1])
        pool.lane(kind).submit(job)
        assert job.over.wait(20)
        assert job.results == [expected]
    assert not lanes.holds_slot()


def test_prestart_starts_no_more_lanes_than_there_are_slots(pool):
    pool.prestart("threads", 2, [])
    pool.prestart("threads", 2, [])
    assert len(list(pool.lanes())) == 2
    busy = pool.lane("threads")
    pool.prestart("threads", 2, [])
    assert len(list(pool.lanes())) == 2
    pool.put_back(busy)


def test_an_idle_lane_ends_and_a_busy_one_does_not(until):
    pool = Pool(1, idle=0.01)
    gate = threading.Event()
    lane = pool.lane("threads")
    job = Job(spec(lambda _: gate.wait(20)), [1])
    lane.submit(job)
    other = pool.lane("threads")
    pool.put_back(other)
    assert until(lambda: not other.thread.is_alive())
    assert lane.thread.is_alive()
    gate.set()
    assert until(lambda: not lane.thread.is_alive())
    assert list(pool.lanes()) == []


def test_a_closed_pool_gives_no_lanes(pool):
    pool.close()
    with pytest.raises(PoolClosed, match="shut down"):
        pool.lane("threads")
    pool.prestart("threads", 1, [])
    assert list(pool.lanes()) == []


def test_forgetting_closes_state_and_says_when_or_what_went_wrong(pool):
    closed = []

    def close(state):
        closed.append(state)
        raise OSError("can't close")

    with_state = spec(samples.with_state, state=tn.PerWorker(list, close=close))
    job = Job(with_state, [1])
    pool.lane("threads").submit(job)
    assert job.over.wait(20)
    ((known, dropped),) = pool.forget([with_state])
    assert known is with_state
    assert isinstance(dropped.exception(20), OSError)
    assert closed == [[]]
    assert pool.forget([with_state]) == []
