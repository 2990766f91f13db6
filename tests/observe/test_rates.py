from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tournant.observe.rates import Smoothed, Tracker, clock, speed
from tournant.report import RunSnapshot, StageSnapshot


def run(elapsed: float, done: int, total: int | None = 1_000, **others: int) -> RunSnapshot:
    counts = {"failed": 0, "skipped": 0, "filtered": 0, "sourced": done, **others}
    return RunSnapshot(elapsed=elapsed, total=total, done=done, **counts)


def stage(items_in: int, busy: float = 0.0, on: str = "threads", **others: int) -> StageSnapshot:
    counts = {"failed": 0, "retried": 0, "queued": 0, "running": 0, "limit": 1, **others}
    return StageSnapshot("embed", on, items_in=items_in, items_out=items_in, busy=busy, **counts)


@given(st.floats(0.1, 1e4), st.lists(st.floats(0.01, 100), min_size=1, max_size=20))
def test_a_steady_counter_has_its_speed_from_the_first_look_on(
    rate: float, steps: list[float]
) -> None:
    smoothed, now = Smoothed(3.0), 0.0
    for step in steps:
        now += step
        assert smoothed.update(now, rate * now) == pytest.approx(rate, rel=1e-4)


def test_the_speed_follows_a_change_and_forgets_what_was_before() -> None:
    smoothed = Smoothed(3.0)
    smoothed.update(10.0, 1_000)
    speeds = [smoothed.update(10.0 + step, 1_000) for step in range(1, 31)]
    assert speeds == sorted(speeds, reverse=True)
    assert 0 < speeds[0] < 100
    assert speeds[-1] < 0.01


def test_time_that_stands_still_or_counters_that_fall_break_nothing() -> None:
    smoothed = Smoothed(3.0)
    assert smoothed.update(0.0, 0) == 0.0
    assert smoothed.update(1.0, 10) == pytest.approx(10)
    assert smoothed.update(1.0, 20) == pytest.approx(10)
    assert smoothed.update(2.0, 5) >= 0.0


def test_the_time_left_follows_from_the_rate() -> None:
    tracker = Tracker()
    assert tracker.update(run(1.0, 10)).remaining is None
    view = tracker.update(run(4.0, 40))
    assert view.rate == pytest.approx(10)
    assert view.remaining == pytest.approx(96)
    assert tracker.update(run(5.0, 1_000)).remaining == 0.0


def test_nothing_is_foretold_without_a_total_or_before_anything_has_ended() -> None:
    assert Tracker().update(run(9.0, 100, total=None)).remaining is None
    assert Tracker().update(run(9.0, 0)).remaining is None


def test_every_outcome_counts_as_settled() -> None:
    view = Tracker().update(run(10.0, 10, failed=2, skipped=30, filtered=4, sourced=60))
    assert view.settled == 46
    assert view.rate == pytest.approx(4.6)


def test_a_source_that_gives_more_than_it_announced_never_passes_100_percent() -> None:
    view = Tracker().update(run(10.0, 8, total=5, sourced=12))
    assert view.total == 12


def test_an_empty_run_is_at_its_end() -> None:
    view = Tracker().update(run(0.0, 0, total=0))
    assert (view.total, view.remaining) == (0, 0.0)


def test_a_stage_shows_what_it_has_finished_and_the_share_of_its_workers_that_worked() -> None:
    tracker = Tracker()
    snapshot = run(10.0, 0)
    stages = (
        stage(100, busy=10.0, limit=2, running=8, failed=2, queued=5, retried=1),
        stage(9, on="engine"),
    )
    view = tracker.update(RunSnapshot(10.0, None, 0, 0, 0, 0, 0, stages))
    embed, gather = view.stages
    assert (embed.done, embed.queued, embed.running) == (90, 5, 8)
    assert (embed.failed, embed.retried) == (2, 1)
    assert embed.rate == pytest.approx(9)
    assert embed.busy == pytest.approx(0.5)
    assert gather.busy is None
    assert snapshot.stages == ()


def test_a_share_is_never_above_one() -> None:
    (view,) = Tracker().update(RunSnapshot(1.0, None, 0, 0, 0, 0, 0, (stage(1, busy=9.0),))).stages
    assert view.busy == 1.0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (59.6, "1:00"), (200, "3:20"), (3_661, "1:01:01"), (400_000, "4 days")],
)
def test_durations_are_readable(seconds: float, text: str) -> None:
    assert clock(seconds) == text


@pytest.mark.parametrize(
    ("rate", "text"),
    [(0, "0/s"), (0.05, "0.05/s"), (3.14, "3.1/s"), (42.3, "42/s"), (12_345.6, "12,346/s")],
)
def test_rates_are_readable(rate: float, text: str) -> None:
    assert speed(rate) == text
