from __future__ import annotations

import asyncio
import pickle

import pytest

import core_samples as samples
import tournant as tn
from tournant.engine.barriers import Group


def test_a_group_is_a_list_that_knows_its_key_and_travels():
    group = Group([1, 2], "k")
    again = pickle.loads(pickle.dumps(group))
    assert (again, again.key, list(again)) == ([1, 2], "k", [1, 2])
    assert repr(group) == "Group([1, 2], key='k')"


def test_an_input_of_which_an_item_failed_is_not_gathered():
    pipeline = (
        tn.Pipeline(range(1, 9), on_error="skip", key=str)
        .flat_map(samples.upto)
        .map(samples.fail_on_seven)
        .gather()
    )
    groups = pipeline.collect()
    assert sorted(g.key for g in groups) == list("1234567")
    report = pipeline.run()
    assert (report.done, report.failed, report.outputs) == (7, 1, 7)


def test_what_a_filter_drops_is_missing_from_its_group_and_nothing_else():
    pipeline = (
        tn.Pipeline([4, 1]).flat_map(samples.upto).filter(lambda n: n % 2, on="loop").gather()
    )
    assert sorted(map(list, pipeline.collect())) == [[], [1, 3]]


def test_an_input_that_is_itself_dropped_makes_no_group():
    pipeline = tn.Pipeline(range(4)).filter(samples.even, on="loop").gather()
    assert sorted(pipeline.collect()) == [[0], [2]]
    report = pipeline.run()
    assert (report.done, report.filtered) == (2, 2)


def test_items_of_a_group_stand_in_the_order_in_which_they_were_made():
    async def main():
        gates = [asyncio.Event() for _ in range(5)]

        async def backwards(n):
            if n < 4:
                await gates[n + 1].wait()
            gates[n].set()
            return n

        return (
            await tn.Pipeline([5])
            .flat_map(samples.upto, on="loop")
            .map(backwards)
            .gather()
            .acollect()
        )

    assert asyncio.run(main()) == [[0, 1, 2, 3, 4]]


def test_nested_fan_outs_keep_their_order():
    pipeline = (
        tn.Pipeline([4]).flat_map(samples.upto).flat_map(samples.upto).map(samples.inc).gather()
    )
    assert pipeline.collect() == [[1, 1, 2, 1, 2, 3]]


@pytest.mark.parametrize("middle", ["ordered", "gather", "both"])
def test_an_empty_fan_out_makes_an_empty_group_behind_other_barriers_too(middle):
    """A sink that replaces what was there relies on it: a document without chunks must empty its place."""
    pipeline = tn.Pipeline([2, 0, 1]).flat_map(samples.upto, on="loop")
    if middle in ("ordered", "both"):
        pipeline = pipeline.ordered()
    if middle in ("gather", "both"):
        pipeline = pipeline.gather().flat_map(samples.same, on="loop")
    groups = pipeline.gather().collect()
    assert {g.key: list(g) for g in groups} == {0: [0, 1], 1: [], 2: [0]}
    report = pipeline.gather().ordered().run()
    assert (report.done, report.outputs) == (3, 3)


def test_two_orders_with_another_stage_between():
    pipeline = (
        tn.Pipeline(range(300))
        .map(samples.same)
        .ordered(window=9)
        .map(samples.inc)
        .ordered(window=4)
    )
    assert pipeline.collect() == [n + 1 for n in range(300)]


def test_ordered_groups():
    pipeline = tn.Pipeline([3, 0, 2, 1] * 30).flat_map(samples.upto).gather().ordered(window=5)
    assert pipeline.collect() == [list(range(n)) for n in [3, 0, 2, 1] * 30]


def test_a_window_of_one_takes_one_input_at_a_time():
    inside, most = 0, 0

    async def fn(value):
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        await asyncio.sleep(0)
        inside -= 1
        return value

    assert tn.Pipeline(range(30)).map(fn).ordered(window=1).collect() == list(range(30))
    assert most == 1


def test_a_failed_item_does_not_hold_back_its_siblings_behind_ordered():
    pipeline = (
        tn.Pipeline([9, 2], on_error="skip")
        .flat_map(samples.upto)
        .map(samples.fail_on_seven)
        .ordered()
    )
    assert pipeline.collect() == [0, 1, 2, 3, 4, 5, 6, 8, 0, 1]
