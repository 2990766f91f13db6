from __future__ import annotations

import asyncio

import core_samples as samples
import tournant as tn
from tournant.engine.plan import fuse


async def a(value):
    return value


async def b(value):
    return value


def names(pipeline, *, inline=False):
    return [[stage.name for stage in group] for group in fuse(pipeline.stages, inline=inline)]


def test_neighbours_with_the_same_placement_share_a_hop():
    pipeline = (
        tn.Pipeline([])
        .map(a)
        .filter(b)
        .map(samples.inc)
        .tap(samples.same)
        .map(samples.pid, on="processes")
    )
    assert names(pipeline) == [["a", "b"], ["inc", "same"], ["pid"]]


def test_a_fan_out_may_end_a_segment_and_nothing_is_fused_behind_it():
    pipeline = tn.Pipeline([]).map(samples.inc).flat_map(samples.upto).map(samples.same)
    assert names(pipeline) == [["inc", "upto"], ["same"]]


def test_batches_and_barriers_stand_alone():
    pipeline = tn.Pipeline([]).map(a).map_batches(samples.inc_all, on="loop").map(b).gather().map(a)
    assert names(pipeline) == [["a"], ["inc_all"], ["b"], ["gather"], ["a-2"]]


def test_what_is_retried_timed_or_capped_by_itself_stands_by_itself_in_the_pool():
    base = tn.Pipeline([]).map(samples.inc)
    assert names(base.map(samples.same, retry=tn.Retry())) == [["inc"], ["same"]]
    assert names(base.map(samples.same, timeout=1)) == [["inc"], ["same"]]
    assert names(base.map(samples.same, max_workers=1)) == [["inc"], ["same"]]
    assert names(base.map(samples.same, blocking=True)) == [["inc"], ["same"]]
    assert names(tn.Pipeline([]).map(a).map(b, retry=tn.Retry(), timeout=1)) == [["a", "b"]]


def test_inline_fuses_whatever_can_be():
    pipeline = (
        tn.Pipeline([])
        .map(a)
        .map(samples.inc, on="processes")
        .map(b)
        .map(samples.same, blocking=True)
    )
    assert names(pipeline, inline=True) == [["a", "inc", "b", "same"]]


def test_fused_stages_keep_the_concurrency_that_each_was_given():
    async def main():
        inside = {"first": 0, "second": 0}
        most = dict(inside)
        full = {"first": asyncio.Event(), "second": asyncio.Event()}
        limits = {"first": 6, "second": 3}

        def stage(name):
            async def fn(value):
                inside[name] += 1
                most[name] = max(most[name], inside[name])
                if inside[name] == limits[name]:
                    full[name].set()
                # Nobody leaves before every permit of the stage has been taken once.
                await full[name].wait()
                await asyncio.sleep(0)
                inside[name] -= 1
                return value

            return fn

        pipeline = (
            tn.Pipeline(range(60))
            .map(stage("first"), concurrency=6)
            .map(stage("second"), concurrency=3)
        )
        assert len(fuse(pipeline.stages)) == 1
        assert sorted(await pipeline.acollect()) == list(range(60))
        assert most == limits

    asyncio.run(main())
