from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

import pytest

import core_samples as samples
import tournant as tn


async def same(value):
    return value


@pytest.fixture(scope="module")
def report():
    return (
        tn.Pipeline(range(100), on_error="skip")
        .map(same)
        .filter(lambda n: n % 10, on="loop")
        .map(samples.fail_on_seven)
        .map(samples.inc, on="processes")
        .gather()
        .for_each(same)
        .run()
    )


def test_the_outcomes_add_up(report):
    assert report.sourced == 100
    assert (report.done, report.failed, report.filtered) == (89, 1, 10)
    assert (report.skipped, report.interrupted, report.outputs) == (0, 0, 89)


def test_each_stages_counts_follow_from_those_before(report):
    counts = [(s.name, s.items_in, s.items_out, s.failed) for s in report.stages]
    assert counts == [
        ("same", 100, 100, 0),
        ("lambda", 100, 90, 0),
        ("fail_on_seven", 90, 89, 1),
        ("inc", 89, 89, 0),
        ("gather", 89, 89, 0),
        ("same-2", 89, 89, 0),
    ]
    assert [s.on for s in report.stages] == [
        "loop",
        "loop",
        "threads",
        "processes",
        "engine",
        "loop",
    ]


def test_measures_are_sane(report):
    assert report.duration > 0
    assert report.cores >= 1
    assert 0 <= report.utilisation <= 1
    assert report.busiest in {s.name for s in report.stages}
    assert (report.bottleneck, report.ceiling is None) in (
        (None, True),
        (report.busiest, False),
    )
    assert (report.bottleneck is None) == (report.utilisation < 0.7)
    for stage in report.stages:
        assert 0 <= stage.p50 <= stage.p90 <= stage.p99
        assert 0 <= stage.occupancy <= 1
        assert (
            min(stage.busy, stage.wait_input, stage.wait_output, stage.wait_slot, stage.wait_limit)
            >= 0
        )


def test_it_is_json(report):
    plain = json.loads(json.dumps(report.as_dict()))
    assert plain["done"] == 89
    assert plain["stages"][2]["name"] == "fail_on_seven"
    (failure,) = plain["failures"]
    assert failure["error"] == "ValueError"
    assert failure["key"] == 7
    assert "raise ValueError" in failure["traceback"]


def test_keys_of_any_kind_are_json():
    items = [Path("/a"), ("t", 1), None, b"x"]
    pipeline = tn.Pipeline(items, key=lambda v: v, on_error="skip").map(lambda v: 1 / 0, on="loop")
    failures = json.loads(json.dumps(pipeline.run().as_dict()))["failures"]
    assert [f["key"] for f in failures] == ["/a", "('t', 1)", "None", "b'x'"]


def test_the_text_is_a_table_that_ends_with_failures_and_warnings(report):
    lines = str(report).splitlines()
    assert lines[0].startswith(
        "100 in: 89 done, 1 failed, 0 skipped, 10 filtered, 0 interrupted; 89 out in "
    )
    assert lines[1].split()[:3] == ["stage", "on", "in"]
    assert [line.split()[0] for line in lines[2:8]] == [s.name for s in report.stages]
    assert lines[8].startswith(("bottleneck: ", "busiest: "))
    assert lines[9] == "failed: 7 in fail_on_seven after 1 attempt(s): ValueError: 'seven'"


def test_many_failures_are_shortened_in_the_text_only():
    report = tn.Pipeline([1] * 30, on_error="skip").map(samples.fail_on_odd, on="loop").run()
    assert len(report.failures) == 30
    text = str(report)
    assert text.count("failed: ") == 10
    assert "... and 20 more failures" in text


def test_a_long_name_does_not_widen_the_table():
    text = str(tn.Pipeline([1]).map(abs, name="x" * 300).run())
    assert "x" * 39 + "…" in text
    assert max(map(len, text.splitlines())) < 200


def test_an_empty_report_is_readable():
    assert str(tn.Report()).startswith("0 in: 0 done")
    assert json.dumps(tn.Report().as_dict())


def test_reports_are_frozen(report):
    with pytest.raises(AttributeError):
        report.done = 5


def test_a_stage_that_was_idle_for_most_of_the_run_is_no_bottleneck_and_has_no_ceiling():
    async def slow_source():
        for number in range(5):
            await asyncio.sleep(0.02)
            yield number

    async def brief(value):
        return value

    report = tn.Pipeline(slow_source).map(brief, concurrency=64).run()
    assert report.busiest == "brief"
    assert report.utilisation < 0.1
    assert report.bottleneck is report.ceiling is None
    assert "busiest: brief at " in str(report)
    assert "bottleneck" not in str(report)
    assert "ceiling" not in str(report)


def test_the_bottleneck_is_the_stage_that_was_busiest():
    def quick(value):
        return value

    def slow(value):
        total = 0
        for n in range(30_000):
            total += n
        return value

    report = tn.Pipeline(range(40)).map(quick, on="loop").map(slow).map(same).run()
    assert report.busiest == "slow"


@pytest.mark.parametrize(
    ("rate", "said"),
    [(1234.56, "1,234.6 inputs/s"), (1.0, "1.0 inputs/s"), (0.5, "30.0 inputs/min"), (1 / 36_000, "0.1 inputs/h")],
)  # fmt: skip
def test_slow_rates_are_told_by_the_minute_or_the_hour(rate, said):
    report = tn.Report(bottleneck="slow", utilisation=0.9, ceiling=rate)
    assert str(report).endswith(f"bottleneck: slow at 90%, ceiling {said}")


def nap(value):
    time.sleep(0.002)
    return value


@pytest.mark.parametrize("on", ["threads", "processes"])
def test_a_stage_with_fewer_workers_than_cores_is_measured_by_its_own(on):
    report = tn.Pipeline(range(100)).map(nap, on=on, max_workers=1).run()
    (stage,) = report.stages
    assert report.busiest == "nap"
    assert report.utilisation == pytest.approx(stage.busy / report.duration)
