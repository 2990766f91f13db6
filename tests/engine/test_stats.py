from __future__ import annotations

import random

import pytest

from tournant.engine.stats import StageStats


def test_percentiles_are_right_to_a_sixteenth():
    stats = StageStats("s", "loop", 1)
    rng = random.Random(1)
    times = [rng.lognormvariate(-7, 1.5) for _ in range(4000)]
    stats.add_times(times)
    times.sort()
    for share in (0.1, 0.5, 0.9, 0.99):
        exact = times[int(share * len(times))]
        assert stats.percentile(share) == pytest.approx(exact, rel=0.07)


def test_percentiles_of_nothing_are_nothing():
    assert StageStats("s", "loop", 1).percentile(0.5) == 0.0


def test_times_of_zero_and_of_hours_are_counted():
    stats = StageStats("s", "loop", 1)
    stats.add_times([0.0, 7200.0, 1e-9])
    assert stats.percentile(1.0) == pytest.approx(7200, rel=0.07)
    assert stats.busy == pytest.approx(7200)


def test_a_long_run_is_sampled_and_its_busy_time_is_not():
    stats = StageStats("s", "loop", 1)
    for _ in range(100):
        stats.times += [0.001] * 1000
        stats.fold()
    assert stats.busy == pytest.approx(100)
    assert stats.percentile(0.5) == pytest.approx(0.001, rel=0.07)


def test_a_snapshot_changes_nothing():
    stats = StageStats("s", "loop", 1)
    stats.times += [0.5, 0.25]
    assert stats.snapshot(3, 1).busy == 0.75
    assert stats.snapshot(3, 1).busy == 0.75
    assert len(stats.times) == 2


def test_occupancy_is_the_share_of_what_could_have_been_used():
    stats = StageStats("s", "loop", 4)
    stats.times += [1.0] * 6
    report = stats.report(2.0)
    assert report.occupancy == pytest.approx(0.75)
    assert stats.report(0.0).occupancy == 0.0
    assert stats.report(0.1).occupancy == 1.0
