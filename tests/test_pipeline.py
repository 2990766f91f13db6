"""The description: frozen, reusable, refused where it can't be; and the ways to run it."""

from __future__ import annotations

import asyncio
import copy
import threading

import pytest

import core_samples as samples
import tournant as tn
from tournant.errors import InvalidPipeline


async def same(value):
    return value


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"source": 5}, "an iterable, an async iterable, or a callable"),
        ({"source": "text"}, "give a list with it inside"),
        ({"source": b"bytes"}, "give a list with it inside"),
        ({"key": "name"}, "key="),
        ({"key": same}, "plain function"),
        ({"fingerprint": 5}, "fingerprint="),
        ({"ledger": "run.db"}, "tn.Ledger(path)"),
        ({"version": 2}, "version=2"),
        ({"on_error": "ignore"}, '"stop" or "skip"'),
        ({"max_failures": -1}, "max_failures=-1"),
        ({"max_failures": 1.5}, "max_failures=1.5"),
        ({"max_failures": True}, "max_failures=True"),
        ({"memory_limit": "much"}, "512MiB"),
        ({"memory_limit": 0}, "memory_limit=0"),
    ],
)
def test_what_cant_be_is_refused_with_the_mend(options, said):
    options = {"source": [], **options}
    with pytest.raises(InvalidPipeline) as caught:
        tn.Pipeline(options.pop("source"), **options)
    assert said in str(caught.value)


def test_a_pipeline_is_frozen_and_every_method_returns_a_new_one():
    base = tn.Pipeline([1, 2])
    longer = base.map(samples.inc)
    assert base.stages == ()
    assert len(longer.stages) == 1
    with pytest.raises(AttributeError, match="frozen"):
        base.stages = ()
    with pytest.raises((AttributeError, TypeError)):
        del base.source
    assert copy.copy(longer).stages == longer.stages


def test_a_pipeline_can_be_read_aloud():
    pipeline = tn.Pipeline(range(3)).map(same).flat_map(samples.upto, on="processes").gather()
    assert repr(pipeline) == (
        "Pipeline(range(0, 3)).map(same, on='loop').flat_map(upto, on='processes').gather(gather)"
    )


def test_a_pipeline_can_be_run_again_and_extended():
    pipeline = tn.Pipeline([1, 2, 3]).map(samples.inc)
    assert sorted(pipeline.collect()) == sorted(pipeline.collect()) == [2, 3, 4]
    assert sorted(pipeline.map(samples.inc).collect()) == [3, 4, 5]


def test_the_same_description_runs_at_the_same_time_with_itself():
    pipeline = tn.Pipeline(range(200)).map(same).map(samples.inc)

    async def main():
        return await asyncio.gather(*(pipeline.acollect() for _ in range(4)))

    assert [sorted(values) for values in asyncio.run(main())] == [list(range(1, 201))] * 4


def test_all_ways_to_run_give_the_same():
    pipeline = tn.Pipeline(range(50)).map(samples.inc).ordered()
    expected = list(range(1, 51))

    async def streamed():
        async with pipeline.open() as run:
            values = [value async for value in run]
        return values, run.report

    async def awaited():
        return await pipeline.acollect(), await pipeline.arun()

    assert pipeline.collect() == pipeline.collect(inline=True) == expected
    assert list(pipeline.iter()) == list(pipeline.iter(inline=True)) == expected
    values, streamed_report = asyncio.run(streamed())
    collected, report = asyncio.run(awaited())
    assert values == collected == expected
    for each in (streamed_report, report, pipeline.run(), pipeline.run(inline=True)):
        assert (each.sourced, each.done, each.outputs) == (50, 50, 50)


def test_results_that_no_sink_takes_are_counted():
    assert tn.Pipeline([2, 3]).flat_map(samples.upto).run().outputs == 5


def test_on_start_gets_a_run_to_watch():
    watched = []
    tn.Pipeline(range(10)).map(same).run(on_start=watched.append)
    snapshot = watched[0].snapshot()
    assert (snapshot.sourced, snapshot.done, snapshot.total) == (10, 10, 10)
    # After the end nothing happens any more, and nothing breaks.
    watched[0].drain()
    watched[0].cancel()


def test_a_run_may_be_started_from_any_thread():
    values = []
    thread = threading.Thread(
        target=lambda: values.extend(tn.Pipeline(range(5)).map(samples.inc).ordered().collect())
    )
    thread.start()
    thread.join(30)
    assert values == [1, 2, 3, 4, 5]
