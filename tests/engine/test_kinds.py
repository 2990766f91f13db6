"""Every stage kind in every place."""

from __future__ import annotations

import asyncio
import threading

import pytest

import core_samples as samples
import tournant as tn
from core_samples import PLACES


@pytest.fixture(params=sorted(PLACES))
def place(request):
    return request.param


def collect(pipeline, place):
    return pipeline.collect(inline=place == "inline")


def test_map_makes_one_result_of_each_item(place):
    pipeline = tn.Pipeline(range(500)).map(samples.inc, **PLACES[place])
    assert sorted(collect(pipeline, place)) == list(range(1, 501))


def test_none_is_a_value_like_any_other(place):
    options = PLACES[place]
    pipeline = (
        tn.Pipeline([None, 1, None]).map(samples.same, **options).map(samples.nothing, **options)
    )
    assert collect(pipeline, place) == [None, None, None]


def test_filter_drops_and_counts(place):
    report = (
        tn.Pipeline(range(101)).filter(samples.even, **PLACES[place]).run(inline=place == "inline")
    )
    assert (report.done, report.filtered, report.outputs) == (51, 50, 51)


def test_tap_passes_the_item_on_whatever_the_callable_returns(place):
    pipeline = tn.Pipeline(range(50)).tap(samples.nothing, **PLACES[place])
    assert sorted(collect(pipeline, place)) == list(range(50))


def test_for_each_ends_the_pipeline_and_gives_no_results(place):
    pipeline = tn.Pipeline(range(50)).for_each(samples.same, **PLACES[place])
    assert collect(pipeline, place) == []
    report = pipeline.run(inline=place == "inline")
    assert (report.done, report.outputs) == (50, 50)


@pytest.mark.parametrize("fn", [samples.upto, samples.as_list])
def test_flat_map_makes_any_number_of_results(place, fn):
    pipeline = tn.Pipeline([0, 1, 5, 0, 3]).flat_map(fn, **PLACES[place])
    assert sorted(collect(pipeline, place)) == sorted([0, *range(5), *range(3)])
    report = pipeline.run(inline=place == "inline")
    assert (report.done, report.filtered, report.outputs) == (5, 0, 9)


def test_map_batches_gives_each_row_its_own_result(place):
    pipeline = tn.Pipeline(range(103)).map_batches(samples.inc_all, size=8, **PLACES[place])
    assert sorted(collect(pipeline, place)) == list(range(1, 104))


def test_batches_are_full_where_there_is_enough(place):
    pipeline = tn.Pipeline(range(64)).map_batches(samples.size_and_value, size=16, **PLACES[place])
    sizes = [size for size, _ in collect(pipeline, place)]
    assert sizes == [16] * 64


def test_the_last_batch_is_as_large_as_what_is_left(place):
    pipeline = tn.Pipeline(range(10)).map_batches(samples.size_and_value, size=8, **PLACES[place])
    sizes = [size for size, _ in collect(pipeline, place)]
    assert sorted(sizes) == [2, 2] + [8] * 8


def test_a_batch_of_the_wrong_length_fails_its_rows_by_name(place):
    pipeline = tn.Pipeline(range(4), on_error="skip").map_batches(
        samples.one_short, size=4, **PLACES[place]
    )
    report = pipeline.run(inline=place == "inline")
    assert report.failed == 4
    assert {type(f.error) for f in report.failures} == {tn.BatchMismatch}
    assert "one result per item" in str(report.failures[0].error)


def test_one_poison_row_of_a_batch_fails_alone(place):
    pipeline = tn.Pipeline(range(32), on_error="skip").map_batches(
        samples.batch_fails_on_seven, size=32, **PLACES[place]
    )
    values = collect(pipeline, place)
    assert sorted(values) == [n + 1 for n in range(32) if n != 7]
    report = pipeline.run(inline=place == "inline")
    assert (report.done, report.failed) == (31, 1)
    assert [f.key for f in report.failures] == [7]


def test_a_failed_fan_out_keeps_what_it_had_passed_on_and_fails_its_input(place):
    pipeline = tn.Pipeline(range(4), on_error="skip").flat_map(
        samples.yields_then_fails, **PLACES[place]
    )
    assert sorted(collect(pipeline, place)) == [(n, i) for n in range(4) for i in range(2)]
    report = pipeline.run(inline=place == "inline")
    assert (report.done, report.failed, report.outputs) == (2, 2, 8)


def test_gather_collects_each_inputs_items_in_order(place):
    pipeline = (
        tn.Pipeline([3, 0, 1], key=lambda n: f"k{n}")
        .flat_map(samples.upto, **PLACES[place])
        .map(samples.inc, **PLACES[place])
        .gather()
    )
    groups = collect(pipeline, place)
    assert {group.key: list(group) for group in groups} == {"k3": [1, 2, 3], "k0": [], "k1": [1]}


def test_ordered_gives_the_sources_order(place):
    pipeline = (
        tn.Pipeline(range(200))
        .map(samples.inc, **PLACES[place])
        .ordered()
        .map(samples.inc, on="loop", concurrency=1)
    )
    assert collect(pipeline, place) == [n + 2 for n in range(200)]


def test_ordered_looks_through_a_fan_out(place):
    pipeline = tn.Pipeline([3, 0, 2, 1]).flat_map(samples.upto, **PLACES[place]).ordered(window=2)
    assert collect(pipeline, place) == [0, 1, 2, 0, 1, 0]


def test_a_string_from_flat_map_is_refused_rather_than_taken_apart(place):
    pipeline = tn.Pipeline(["ab"], on_error="skip").flat_map(samples.same, **PLACES[place])
    report = pipeline.run(inline=place == "inline")
    assert report.failed == 1
    assert "wrap a single result in a list" in str(report.failures[0].error)


def test_a_coroutine_that_nobody_would_await_fails_its_item(place):
    for kind in ("map", "filter", "flat_map", "map_batches"):
        pipeline = getattr(tn.Pipeline([1], on_error="skip"), kind)(
            samples.coroutine_by_mistake, **PLACES[place]
        )
        report = pipeline.run(inline=place == "inline")
        assert [type(f.error) for f in report.failures] == [tn.ForgottenAwait], kind


def test_per_worker_state_is_built_once_per_worker_and_closed_before_the_run_ends(place, tmp_path):
    folder = tmp_path / "states"
    folder.mkdir()
    state = tn.PerWorker(_Factory(str(folder)), close=samples.Counted.close)
    pipeline = tn.Pipeline(range(200)).map(samples.state_name, state=state, **PLACES[place])
    names = set(collect(pipeline, place))
    built = {p.name.removeprefix("built-") for p in folder.glob("built-*")}
    closed = {p.name.removeprefix("closed-") for p in folder.glob("closed-*")}
    assert names <= built
    assert closed == built
    if place in ("loop", "inline"):
        assert len(built) == 1


class _Factory:
    def __init__(self, folder):
        self.folder = folder

    def __call__(self):
        return samples.Counted(self.folder)


def test_a_factory_that_raises_names_itself_and_ends_the_run(place):
    pipeline = tn.Pipeline(range(3)).map(
        samples.with_state, state=tn.PerWorker(samples.broken_factory), **PLACES[place]
    )
    with pytest.raises((tn.PipelineFailed, RuntimeError)) as caught:
        pipeline.run(inline=place == "inline")
    errors = getattr(caught.value, "exceptions", (caught.value,))
    assert all(str(error) == "no model here" for error in errors)
    # Nothing is left behind that would refuse the next run.
    assert tn.Pipeline([1]).map(samples.inc).collect() == [2]


def test_async_kinds_run_on_the_loop():
    async def double(value):
        await asyncio.sleep(0)
        return value * 2

    async def twice(value):
        yield value
        await asyncio.sleep(0)
        yield value

    async def listed(value):
        return [value, value]

    async def is_even(value):
        return value % 2 == 0

    async def all_plus(values):
        return [value + 1 for value in values]

    seen = []

    async def note(value):
        seen.append(value)

    pipeline = (
        tn.Pipeline(range(10))
        .map(double)
        .flat_map(twice)
        .flat_map(listed)
        .filter(is_even)
        .map_batches(all_plus, size=3)
        .tap(note)
    )
    expected = sorted(2 * n + 1 for n in range(10) for _ in range(4))
    assert sorted(pipeline.collect()) == expected == sorted(seen)
    seen.clear()
    assert sorted(pipeline.collect(inline=True)) == expected


@pytest.mark.parametrize("place", ["loop", "threads", "blocking"])
def test_a_generators_results_flow_on_while_it_is_still_producing(place):
    arrived = threading.Event()

    def endless(_n):
        yield "first"
        # Goes on only when the first result has come out at the other end.
        assert arrived.wait(30)
        yield "second"

    async def endless_async(_n):
        yield "first"
        await asyncio.to_thread(arrived.wait, 30)
        yield "second"

    pipeline = (
        tn.Pipeline([0]).flat_map(endless_async)
        if place == "loop"
        else tn.Pipeline([0]).flat_map(endless, **PLACES[place])
    )
    got = []
    for value in pipeline.iter():
        got.append(value)
        arrived.set()
    assert got == ["first", "second"]


def waits_between(path):
    import os
    import time

    yield "first"
    while not os.path.exists(path):
        time.sleep(0.005)
    yield "second"


def test_a_process_generators_results_flow_on_while_it_is_still_producing(tmp_path):
    path = tmp_path / "go"
    got = []
    for value in tn.Pipeline([str(path)]).flat_map(waits_between, on="processes").iter():
        got.append(value)
        path.touch()
    assert got == ["first", "second"]


@pytest.mark.parametrize("place", ["threads", "processes", "blocking"])
def test_results_behind_a_long_item_are_not_held_back(place, tmp_path):
    """The long item waits until somebody has seen the others, which share its chunk."""
    path = str(tmp_path / "go")
    items = [("", n) for n in range(64)] + [(path, 64)]
    seen = []
    pipeline = tn.Pipeline(items).map(samples.waits_then, max_workers=1, on="processes")
    if place == "threads":
        pipeline = tn.Pipeline(items).map(samples.waits_then, max_workers=1)
    elif place == "blocking":
        pipeline = tn.Pipeline(items).map(samples.waits_then, blocking=True, concurrency=1)
    for value in pipeline.iter():
        seen.append(value)
        if len(seen) == 64:
            open(path, "w").close()
    assert sorted(seen) == list(range(65))
