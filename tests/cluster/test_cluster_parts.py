"""The parts of a cluster run that need no cluster: what is refused, where a pipeline is cut, how nodes are added up."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import pickle
import sys
from dataclasses import replace

import pytest

import tournant as tn
from tournant.cluster import adding, leases
from tournant.cluster.messages import Measured, pack, pack_error, unpack
from tournant.cluster.placing import place
from tournant.cluster.settings import settings_of
from tournant.limits.headers import HeaderFacts
from tournant.limits.shared import Ticket
from tournant.observe.recording import Counter, InputSpan, Lane, Mark, Recording, Slice, Stage
from tournant.report import StageReport


def step(value):
    return value


# Settings and places.


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"nodes": 0}, "nodes"),
        ({"cpus": 1.5}, "cpus"),
        ({"shard": True}, "shard"),
        ({"address": ""}, "address"),
        ({"driver_from": 3}, "driver_from"),
        ({"resources": {"GPU": 0}}, "resources"),
        ({"lost_after": 0}, "lost_after"),
    ],
)
def test_settings_that_can_not_be_are_refused_by_name(options, word):
    with pytest.raises(tn.InvalidPipeline, match=rf"Ray\({word}="):
        tn.cluster.Ray(**options)


def test_cluster_is_a_word_an_address_or_settings():
    assert settings_of("ray") == tn.cluster.Ray()
    assert settings_of("ray://10.0.0.1:10001").address == "ray://10.0.0.1:10001"
    assert settings_of("ray:10.0.0.1:6379").address == "10.0.0.1:6379"
    for wrong in ("dask", "ray://", "ray:", 3, ""):
        with pytest.raises(tn.InvalidPipeline, match=r"run\(cluster="):
            settings_of(wrong)


def test_a_pipeline_is_cut_in_front_of_ordered_and_of_the_stage_that_is_named():
    pipeline = (
        tn.Pipeline([1]).map(step, name="a").map(step, name="b").ordered().map(step, name="c")
    )
    assert [stage.name for stage in place(pipeline, "ray").stages] == ["nodes", "ordered", "c"]
    named = place(pipeline, tn.cluster.Ray(driver_from="b"))
    assert [stage.name for stage in named.stages] == ["nodes", "b", "ordered", "c"]
    assert [stage.name for stage in pipeline.stages] == ["a", "b", "ordered", "c"]


@pytest.mark.parametrize(
    ("pipeline", "settings", "why"),
    [
        (tn.Pipeline([1]), "ray", "no stages"),
        (tn.Pipeline([1]).ordered().map(step), "ray", "ordered"),
        (tn.Pipeline([1]).map(step), tn.cluster.Ray(driver_from="step"), "is the first stage"),
        (tn.Pipeline([1]).map(step), tn.cluster.Ray(driver_from="stop"), "no such stage"),
        (
            tn.Pipeline([1]).batch(2).batch(2).unbatch(name="rows").unbatch(),
            tn.cluster.Ray(driver_from="rows"),
            "batches of batches",
        ),
    ],
)
def test_what_leaves_nothing_for_the_nodes_is_refused(pipeline, settings, why):
    with pytest.raises(tn.InvalidPipeline, match=why):
        pipeline.run(cluster=settings)


def test_inline_and_cluster_exclude_each_other():
    with pytest.raises(tn.InvalidPipeline, match="inline"):
        tn.Pipeline([1]).map(step).run(inline=True, cluster="ray")


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(tn.cluster.ClusterUnavailable, match=r"pip install 'tournant\[ray\]'"):
        tn.Pipeline([1]).map(step).run(cluster="ray")


def test_errors_travel_or_something_stands_in_for_them():
    class Odd(Exception):
        def __init__(self, one, two):
            super().__init__(f"{one} {two}")

    error = Odd(1, 2)
    error.add_note("in stage x")
    stand_in = unpack(pack_error(error))
    assert isinstance(stand_in, tn.NotPicklable)
    assert "1 2" in str(stand_in)
    assert stand_in.__notes__ == ["in stage x"]
    assert isinstance(unpack(pack_error(KeyError("k"))), KeyError)
    with pytest.raises(TypeError):
        pack(iter([1]).__reduce__ and (n for n in ()))


# Adding up.


def measured(**changes) -> Measured:
    stage = {
        "name": "s", "on": "threads", "items_in": 10, "items_out": 9, "failed": 1, "retried": 2, "busy": 1.0, "wait_input": 0.5, "wait_output": 0.0,
        "wait_slot": 0.0, "wait_limit": 0.0, "p50": 0.1, "p90": 0.1, "p99": 0.1, "limit": 2, "occupancy": 0.5,
    }  # fmt: skip
    return Measured(StageReport(**{**stage, **changes}), {3: 5}, 4, 1, 0.0, True)


def test_the_counts_of_nodes_add_up_and_only_the_living_count_as_running():
    stats = adding.SummedStats("s", "threads")
    stats.add_up([measured(), measured(items_in=20)], [measured()])
    report = stats.report(2.0)
    assert (report.items_in, report.items_out, report.failed, report.retried) == (30, 18, 2, 4)
    assert (report.busy, report.limit) == (2.0, 2)
    shown = stats.snapshot(3, stats.started - stats.left)
    assert (shown.queued, shown.running) == (7, 1)
    assert stats.percentile(0.5) > 0


def test_a_warning_of_several_nodes_is_told_once_with_their_names():
    assert adding.add_warnings([("a", ["slow"]), ("b", ["slow", "hot"])]) == [
        "slow (on a, b)",
        "hot (on b)",
    ]


def recording(began: float, key: str, **changes) -> Recording:
    return Recording(
        **{
            "title": "part", "began": began, "duration": 2.0, "cores": 1,
            "stages": (Stage("a", "loop"), Stage(key, "threads")), "lanes": (Lane("thread", "thread 1"),),
            "slices": (Slice(0, 1, 0.5, 1.0, (0, 7)),), "inputs": {0: InputSpan(key, 0.5, 1.0)},
            "counters": (Counter("cores", "cores", ((0.0, 1.0),)),), "marks": (Mark("note", 1.5, "said", 0),), **changes,
        }
    )  # fmt: skip


def test_recordings_become_one_on_one_clock_with_a_group_of_lanes_each():
    parts = [
        ("driver", recording(100.0, "x", inputs={5: InputSpan("x", 0.0, 0.1)}, slices=()), None),
        ("n1", recording(101.0, "x"), {0: 5}),
        ("n2", recording(100.5, "y"), {0: 6}),
    ]
    whole = adding.add_recordings(parts, summary="all")
    assert (whole.began, whole.duration, whole.cores, whole.summary) == (100.0, 3.0, 2, "all")
    assert [lane.group for lane in whole.lanes] == ["driver", "n1", "n2"]
    assert whole.stages == (Stage("a", "loop"), Stage("x", "threads"), Stage("y", "threads"))
    first, second = whole.slices
    assert (first.lane, first.stage, first.began, first.inputs) == (2, 2, 1.0, (6,))
    assert (second.lane, second.stage, second.began, second.inputs) == (1, 1, 1.5, (5,))
    # The driver's span of an input begins first, and the node's is within it.
    assert whole.inputs[5] == InputSpan("x", 0.0, 2.0)
    assert whole.inputs[6] == InputSpan("y", 1.0, 1.5)
    assert [(mark.at, mark.lane) for mark in whole.marks] == [(1.5, 0), (2.0, 2), (2.5, 1)]
    assert [counter.group for counter in whole.counters] == ["driver", "n1", "n2"]
    assert pickle.loads(pickle.dumps(whole)) == whole


def test_a_stage_of_several_nodes_is_one_however_much_each_of_them_computed():
    def node(computing):
        there = recording(100.0, "x")
        stages = tuple(stage._replace(computing=computing) for stage in there.stages)
        return replace(there, stages=stages)

    parts = [("n1", node(0.25), {0: 5}), ("n2", node(0.75), {0: 6}), ("n3", node(None), {0: 7})]
    whole = adding.add_recordings(parts)
    assert [(stage.name, stage.computing) for stage in whole.stages] == [("a", 0.5), ("x", 0.5)]
    assert {one.stage for one in whole.slices} == {1}


# Leases.


class Handle:
    """An actor's handle whose calls run on an event loop of this test."""

    def __init__(self, limiter: leases.Limiter, loop: asyncio.AbstractEventLoop) -> None:
        self._limiter, self._loop = limiter, loop
        self.asked = 0

    def __getattr__(self, name):
        method = getattr(self._limiter, name)

        class Call:
            @staticmethod
            def remote(*args):
                self.asked += name == "lease"
                future = asyncio.run_coroutine_threadsafe(method(*args), self._loop)

                class Ref:
                    @staticmethod
                    def future() -> concurrent.futures.Future:
                        return future

                return Ref

        return Call


@contextlib.asynccontextmanager
async def leased(count: int = 1, **figures):
    """A limiter on the running loop and `count` nodes' sides of its one limit."""
    shared = leases.Shared("limit", tn.limits.RateLimit(**figures), ("s",))
    limiter = leases.Limiter([shared])
    handle = Handle(limiter, asyncio.get_running_loop())
    nodes = [leases.LeasedLimit(f"n{n}", "limit", handle) for n in range(count)]
    try:
        yield limiter, nodes, handle
    finally:
        for node in nodes:
            await asyncio.to_thread(node.end)
        # What the nodes said last runs on this loop.
        await asyncio.sleep(0.05)


async def told(limiter, condition):
    """Wait until the limiter has been told what makes `condition` true."""
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("the limiter was not told")


def test_permits_are_leased_in_blocks_and_closed_at_the_limiter():
    async def main():
        async with leased(requests="1000/s", burst=100) as (limiter, (node,), handle):
            tickets = [Ticket(0.0) for _ in range(50)]
            await asyncio.gather(*[node.take(ticket) for ticket in tickets])
            assert all(ticket.held for ticket in tickets)
            assert handle.asked < 25
            state = limiter._limits["limit"]
            for ticket in tickets:
                node.close(ticket, True)
            await told(limiter, lambda: state.snapshot("").in_flight == 0)

    asyncio.run(main())


def test_unused_permits_go_back():
    async def main():
        async with leased(requests="100/s", burst=50) as (limiter, (node,), _):
            node._takes.extend([0.0, node.clock.now()])
            node._takes = type(node._takes)(
                [node.clock.now() - 0.01 * n for n in range(64, 0, -1)], 64
            )
            ticket = Ticket(0.0)
            await node.take(ticket)
            state = limiter._limits["limit"]
            assert state.snapshot("").in_flight > 1, "nothing was leased ahead"
            await told(limiter, lambda: state.snapshot("").in_flight == 1)
            node.close(ticket, True)
            await told(limiter, lambda: state.snapshot("").in_flight == 0)

    asyncio.run(main())


def test_a_refusal_on_one_node_freezes_the_others():
    async def main():
        async with leased(2, requests="100/s", burst=50) as (limiter, (one, other), _):
            ticket = Ticket(0.0)
            await one.take(ticket)
            one.throttled(ticket, 30.0, None)
            one.throttled(ticket, 30.0, None)
            state = limiter._limits["limit"]
            await told(limiter, lambda: state.snapshot("").frozen_for > 20)
            assert state.snapshot("").throttled == 1
            waiting = asyncio.ensure_future(other.take(late := Ticket(0.0)))
            await asyncio.wait([waiting], timeout=0.1)
            assert not waiting.done()
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            assert not late.held

    asyncio.run(main())


def test_tokens_are_settled_and_headers_observed_at_the_limiter():
    async def main():
        async with leased(tokens="1000/min", burst=500) as (limiter, (node,), _):
            ticket = Ticket(100.0)
            await node.take(ticket)
            state = limiter._limits["limit"]
            level = state.snapshot("").tokens.level
            node.settle(ticket, 400.0)
            await told(limiter, lambda: state.snapshot("").tokens.level < level - 250)
            node.close(ticket, True)
            node.settle(ticket, 100.0)
            await told(limiter, lambda: state.snapshot("").tokens.level > level - 100)
            node.observe(HeaderFacts(), ticket)

    asyncio.run(main())


def test_what_a_lost_node_held_ends_at_the_limiter():
    async def main():
        async with leased(requests="100/s", burst=50) as (limiter, (node,), _):
            await node.take(Ticket(0.0))
            state = limiter._limits["limit"]
            assert state.snapshot("").in_flight >= 1
            await limiter.gone("n0")
            assert state.snapshot("").in_flight == 0

    asyncio.run(main())
