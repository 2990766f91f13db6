from __future__ import annotations

import asyncio

import pytest

import core_samples as samples
import tournant as tn


async def same(value):
    return value


def test_batches_by_size():
    assert tn.Pipeline(range(7)).batch(3).collect() == [[0, 1, 2], [3, 4, 5], [6]]


def test_batches_by_weight_end_before_they_would_be_too_heavy():
    words = ["aa", "bbb", "c", "dddddddd", "e", "ff"]
    batches = tn.Pipeline(words).batch(weight=len, max_weight=5).collect()
    assert batches == [["aa", "bbb"], ["c"], ["dddddddd"], ["e", "ff"]]


def test_whichever_comes_first():
    batches = tn.Pipeline(["a"] * 5 + ["bbbb"] * 2).batch(3, weight=len, max_weight=5).collect()
    assert batches == [["a"] * 3, ["a", "a"], ["bbbb"], ["bbbb"]]


def test_a_weight_that_raises_fails_its_item():
    report = tn.Pipeline([1, "ab"], on_error="skip").batch(weight=len, max_weight=5).run()
    assert (report.done, report.failed) == (1, 1)
    assert report.failures[0].key == 0

    def leaves(value):
        raise SystemExit

    report = tn.Pipeline([1], on_error="skip").batch(weight=leaves, max_weight=5).run()
    assert type(report.failures[0].error) is tn.StageExit


def test_a_partial_batch_goes_when_its_first_item_has_waited_long_enough():
    async def main():
        taken = asyncio.Event()

        async def source():
            yield 1
            yield 2
            # Nothing more comes before the partial batch has been seen.
            await taken.wait()
            yield 3

        got = []
        async with tn.Pipeline(source).batch(10, max_wait=0.02).open() as run:
            async for batch in run:
                got.append(batch)
                taken.set()
        return got

    got = asyncio.run(main())
    assert [n for batch in got for n in batch] == [1, 2, 3]
    assert got[-1] == [3]


@pytest.mark.parametrize("on", ["loop", "threads"])
def test_a_partial_batch_of_map_batches_goes_after_max_wait(on):
    async def main():
        taken = asyncio.Event()

        async def source():
            yield 1
            yield 2
            await taken.wait()
            yield 3

        got = []
        pipeline = tn.Pipeline(source).map_batches(
            samples.size_and_value, size=10, max_wait=0.02, on=on
        )
        async with pipeline.open() as run:
            async for size_and_value in run:
                got.append(size_and_value)
                taken.set()
        return got

    assert [value for _, value in asyncio.run(main())] == [1, 2, 3]


def test_a_batch_that_waits_for_more_while_the_window_is_closed_goes():
    """The window lets five inputs in, and a full batch wants ten."""
    pipeline = tn.Pipeline(range(30)).batch(10).unbatch().ordered(window=5)
    assert pipeline.collect() == list(range(30))


def test_an_input_is_done_when_its_batch_is():
    report = tn.Pipeline(range(10)).batch(4).for_each(samples.same, on="loop").run()
    assert (report.done, report.outputs) == (10, 3)


def test_a_failing_batch_fails_all_its_inputs_and_names_them():
    def fn(values):
        if 5 in values:
            raise ValueError
        return values

    report = tn.Pipeline(range(10), on_error="skip").batch(4).map(fn, on="loop").run()
    assert (report.done, report.failed) == (6, 4)
    assert report.failures[0].key == (4, 5, 6, 7)


def test_unbatch_gives_each_entry_back_to_its_input():
    pipeline = (
        tn.Pipeline(range(10), key=lambda n: f"k{n}")
        .batch(4)
        .map(samples.inc_all, on="loop")
        .unbatch()
        .gather()
    )
    assert {g.key: list(g) for g in pipeline.collect()} == {f"k{n}": [n + 1] for n in range(10)}


def test_entries_of_another_length_descend_from_the_whole_batch():
    pipeline = (
        tn.Pipeline(range(6), on_error="skip")
        .batch(3)
        .map(lambda b: [sum(b), 7], on="loop")
        .unbatch()
        .map(samples.fail_on_seven)
    )
    assert sorted(pipeline.collect()) == [3, 12]
    report = pipeline.run()
    assert (report.done, report.failed, report.outputs) == (0, 6, 2)
    assert report.failures[0].key in ((0, 1, 2), (3, 4, 5))


@pytest.mark.parametrize("barrier", ["gather", "ordered"])
def test_entries_that_nobody_can_place_are_refused_where_places_matter(barrier):
    pipeline = (
        tn.Pipeline(range(6), on_error="skip")
        .batch(3)
        .map(lambda b: b[:2] if b[0] else b, on="loop")
        .unbatch()
    )
    pipeline = getattr(pipeline, barrier)()
    report = pipeline.run()
    assert (report.done, report.failed) == (3, 3)
    assert type(report.failures[0].error) is tn.BatchMismatch
    assert barrier in str(report.failures[0].error) or "gather" in str(report.failures[0].error)


def test_what_is_no_list_is_refused_by_unbatch():
    report = (
        tn.Pipeline([1, 2], on_error="skip").batch(2).map(lambda b: 5, on="loop").unbatch().run()
    )
    assert report.failed == 2
    assert "unbatch got a int" in str(report.failures[0].error)


def test_a_failed_piece_of_a_batch_is_not_forgotten_though_the_others_come_through():
    """A fan-out of a batch makes two lists as long as the batch; one of them fails."""

    def twice(batch):
        yield batch
        yield [-1 for _ in batch]

    def refuse(batch):
        if batch[0] == -1:
            raise ValueError
        return batch

    report = (
        tn.Pipeline(range(4), on_error="skip")
        .batch(2)
        .flat_map(twice, on="loop")
        .map(refuse, on="loop")
        .unbatch()
        .run()
    )
    assert (report.done, report.failed) == (0, 4)


def test_dropping_a_batch_drops_its_members_only():
    """One document's chunks lie in two batches, and one of them is dropped."""
    pipeline = (
        tn.Pipeline([4])
        .flat_map(samples.upto, on="loop")
        .batch(2)
        .filter(lambda b: b[0] != 0, on="loop")
        .unbatch()
        .gather()
    )
    assert pipeline.collect() == [[2, 3]]
    assert pipeline.run().done == 1


def test_batches_in_batches():
    pipeline = tn.Pipeline(range(8)).batch(2).batch(2)
    assert pipeline.collect() == [[[0, 1], [2, 3]], [[4, 5], [6, 7]]]
    assert sorted(pipeline.unbatch().unbatch().collect()) == list(range(8))
    assert pipeline.run().done == 8
    failing = (
        tn.Pipeline(range(8), on_error="skip")
        .batch(2)
        .batch(2)
        .map(samples.fail_on_seven, on="loop")
    )
    assert failing.run().done == 8


def test_items_are_counted_whether_in_batches_or_not():
    report = tn.Pipeline(range(10)).map(same).batch(4).unbatch().map(samples.inc, on="loop").run()
    stages = {stage.name: stage for stage in report.stages}
    assert stages["batch"].items_in == stages["batch"].items_out == 10
    assert stages["unbatch"].items_out == stages["inc"].items_in == 10
