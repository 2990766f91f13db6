from __future__ import annotations

import asyncio
import os

import pytest

import core_samples as samples
import tournant as tn
from core_samples import PLACES


async def double(value):
    await asyncio.sleep(0)
    return value * 2


@pytest.mark.parametrize("place", ["loop", "threads", "blocking", "processes"])
def test_map_keeps_the_items_order(place):
    assert tn.map(samples.inc, range(500), **PLACES[place]) == list(range(1, 501))
    assert tn.map(double, (n for n in range(50)), concurrency=7, window=9) == [
        2 * n for n in range(50)
    ]
    assert tn.map(samples.inc, []) == []


def test_map_takes_an_async_iterable():
    async def numbers():
        for n in range(5):
            yield n

    assert tn.map(double, numbers()) == [0, 2, 4, 6, 8]


def test_map_stops_at_a_failure():
    with pytest.raises(tn.PipelineFailed):
        tn.map(samples.fail_on_seven, range(10))


def test_for_each_gives_the_report():
    seen = []
    report = tn.for_each(seen.append, range(10), on="loop")
    assert (sorted(seen), report.done) == (list(range(10)), 10)


def test_run_is_one_call():
    assert tn.run(pow, 2, 10) == 1024
    assert tn.run(os.getpid, on="processes") != os.getpid()
    assert tn.run(double, 4) == 8
    assert tn.run(lambda a, b: a - b, 5, 3, on="processes") == 2

    async def main():
        return (
            await tn.arun(pow, 3, 2),
            await tn.arun(double, 5),
            await tn.arun(os.getpid, on="processes"),
        )

    nine, ten, pid = asyncio.run(main())
    assert (nine, ten) == (9, 10)
    assert pid != os.getpid()


def test_what_the_call_raises_is_raised_as_it_is():
    with pytest.raises(ValueError, match="seven") as caught:
        tn.run(samples.fail_on_seven, 7)
    assert caught.value.__suppress_context__

    async def main():
        await tn.arun(samples.fail_on_seven, 7, on="processes")

    with pytest.raises(ValueError, match="seven"):
        asyncio.run(main())


def test_options_are_those_of_a_stage():
    with pytest.raises(tn.StageTimeout):
        tn.run(samples.hangs_on_three, 3, on="processes", timeout=0.2)
    assert tn.run(samples.with_state, 1, state=tn.PerWorker(list)) == (1, [])
    with pytest.raises(tn.InvalidPipeline, match=r"tn.run\(5\)"):
        tn.run(5)
    with pytest.raises(tn.InvalidPipeline, match=r"\.map\(double\)"):
        tn.run(double, 1, on="threads")
