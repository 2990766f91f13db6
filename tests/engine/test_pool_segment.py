"""Chunks, slots and fan-outs that are held back."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

import core_samples as samples
import tournant as tn
from tournant.pool import lanes


def many(n):
    for i in range(3000):
        # A little work, so that a fan-out comes in several parts.
        for _ in range(400):
            pass
        yield (n, i)


@pytest.mark.parametrize("options", [{"on": "threads"}, {"on": "processes"}, {"blocking": True}])
def test_a_fan_out_that_is_held_back_goes_on_when_there_is_room(options):
    """More results than the channel behind can take, and a consumer that is slower."""

    async def main():
        got = []
        async with tn.Pipeline(range(6)).flat_map(many, **options).open() as run:
            async for value in run:
                got.append(value)
                if len(got) % 500 == 0:
                    await asyncio.sleep(0.005)
        return got

    got = asyncio.run(main())
    assert sorted(got) == [(n, i) for n in range(6) for i in range(3000)]
    assert lanes.shared().slots._taken == 0


@pytest.mark.parametrize("options", [{"on": "threads"}, {"on": "processes"}])
def test_a_fan_out_that_is_held_back_gives_its_slot_away(options):
    """Every slot could be taken by fan-outs that wait for a stage that needs a slot itself."""
    values = tn.Pipeline(range(6)).flat_map(many, **options).map(samples.same, **options).collect()
    assert sorted(values) == [(n, i) for n in range(6) for i in range(3000)]


@pytest.mark.parametrize("options", [{"on": "threads"}, {"on": "processes"}])
@pytest.mark.parametrize("how", ["leave", "fail"])
def test_a_run_that_ends_while_fan_outs_are_held_back_ends(options, how):
    async def main():
        pipeline = tn.Pipeline(range(6)).flat_map(many, **options)
        if how == "fail":
            pipeline = pipeline.map(samples.fail_on_seven, on="loop", name="check").map(
                lambda v: 1 / (v[1] - 200), on="loop", concurrency=1
            )
            with pytest.raises(tn.PipelineFailed):
                await pipeline.arun()
            return
        async with pipeline.open() as run:
            await anext(run)
            # Everything comes to rest.
            last = -1
            while run.snapshot().stages[0].items_out != last:
                last = run.snapshot().stages[0].items_out
                await asyncio.sleep(0.05)

    asyncio.run(main())
    assert lanes.shared().slots._taken == 0


def test_the_stage_closest_to_the_sink_gets_the_slot():
    """With one slot, an item that can go on does so before another one starts."""
    order = []

    def first(n):
        order.append(("first", n))
        return n

    def second(n):
        order.append(("second", n))
        return n

    pool = lanes.Pool(1)
    lanes._shared, before = pool, lanes._shared
    try:
        # max_workers keeps the two from being fused; the retries keep chunks of one from being taken for many.
        tn.Pipeline(range(30)).map(first, timeout=0.2).map(second, max_workers=1, timeout=0.2).run()
    finally:
        lanes._shared = before
        pool.close()
    ahead = most = 0
    for stage, _ in order:
        ahead += 1 if stage == "first" else -1
        most = max(most, ahead)
    assert most <= 2


def test_cheap_items_travel_in_chunks():
    seen = set()
    names = tn.Pipeline(range(5000)).map(samples.thread_name).collect()
    seen.update(names)
    assert len(names) == 5000
    assert len(seen) <= lanes.shared().slots.count


def test_slots_are_all_free_after_every_kind_of_end():
    pool = lanes.shared()
    with pytest.raises(tn.PipelineFailed):
        tn.Pipeline(range(1000)).map(samples.fail_on_seven).run()
    for _ in tn.Pipeline(range(1000)).map(samples.inc, on="processes").iter():
        break
    tn.Pipeline(range(20), on_error="skip").map(samples.exits_on_three, on="processes").run()
    tn.Pipeline(range(8), on_error="skip").map(
        samples.hangs_on_three, timeout=0.06, on="processes"
    ).run()
    assert (pool.slots._taken, pool.slots._held, pool.slots._waiting, pool.slots._kept) == (
        0,
        {},
        {},
        {},
    )


def test_workers_start_while_the_first_items_are_being_read():
    tn.shutdown()
    started = threading.Event()

    def source():
        # Comes to an end only if a worker process is up before there is a first item.
        due = time.monotonic() + 30
        while time.monotonic() < due:
            if any(
                lane.process is not None
                for lane in lanes.shared().lanes()
                if lane.kind == "processes"
            ):
                started.set()
                break
            time.sleep(0.002)
        yield 1

    assert tn.Pipeline(source).map(samples.inc, on="processes").collect() == [2]
    assert started.is_set()


def test_nothing_is_started_for_a_run_that_needs_nothing(nothing_left):
    async def same(value):
        return value

    tn.Pipeline(range(10)).map(same).run()
    tn.Pipeline([]).map(samples.inc, on="processes").run()
    assert not list(lanes.shared().lanes())
