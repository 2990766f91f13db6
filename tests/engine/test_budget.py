"""The memory limit: what counts, what it bounds, and that it stops nothing."""

from __future__ import annotations

import asyncio
import dataclasses
import threading

import pytest

import tournant as tn
from tournant.engine.budget import Budget, parse_bytes
from tournant.engine.lineage import Input
from tournant.engine.run import Run
from tournant.errors import InvalidPipeline
from tournant.sizes import size_of


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (1, 1),
        ("1", 1),
        ("2kB", 2000),
        ("512 MiB", 512 << 20),
        ("1.5 GB", 1_500_000_000),
        ("1_000 b", 1000),
    ],
)
def test_a_limit_is_a_number_or_text(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize(
    "wrong", [0, -1, True, 1.5, "", "GB", "12 parsec", "-3 MB", None, "1 2 kb"]
)
def test_a_limit_that_is_neither_is_refused(wrong):
    with pytest.raises(InvalidPipeline, match="memory_limit"):
        parse_bytes(wrong)


def test_sizes_follow_what_a_value_holds_on_to():
    @dataclasses.dataclass
    class Document:
        text: str
        parts: list

    blob = b"x" * 10_000
    assert 10_000 <= size_of(blob) < 10_200
    assert 10_000 <= size_of([blob]) < 10_400
    assert 20_000 <= size_of({"a": blob, "b": blob}) < 20_800
    assert 20_000 <= size_of(Document("t" * 10_000, [blob])) < 21_500
    # Long lists are estimated from a sample.
    assert 900_000 <= size_of([blob] * 100) <= 1_100_000
    assert 40_000 <= size_of(memoryview(bytes(40_000)).cast("B")) < 40_300


def test_results_go_before_inputs_and_one_always_passes():
    async def main():
        budget = Budget(100, asyncio.get_running_loop())
        order = []
        a, b = Input("a", 0, None, None), Input("b", 1, None, None)

        async def child(name, size, origin):
            await budget.child(size, origin)
            budget.add(size)
            order.append(name)

        async def source(size):
            await budget.input(size)
            budget.add(size)
            order.append("input")

        await child("huge", 500, a)
        tasks = [asyncio.create_task(source(10))]
        await asyncio.sleep(0)
        tasks += [asyncio.create_task(child("x", 60, a)), asyncio.create_task(child("y", 60, b))]
        await asyncio.sleep(0)
        assert budget.waiting
        budget.add(-500)
        await asyncio.sleep(0.01)
        assert order == ["huge", "x"]
        budget.add(-60)
        await asyncio.sleep(0.01)
        assert order == ["huge", "x", "y"]
        budget.add(-60)
        await asyncio.gather(*tasks)
        assert order[-1] == "input"
        assert not budget.waiting

    asyncio.run(main())


def test_who_is_favoured_passes_and_only_who_descends_from_the_same_input():
    async def main():
        budget = Budget(100, asyncio.get_running_loop())
        a, b = Input("a", 0, None, None), Input("b", 1, None, None)
        budget.add(100)
        passed = []

        async def child(origin):
            await budget.child(10, origin)
            budget.add(10)
            passed.append(origin.key)

        tasks = [asyncio.create_task(child(origin)) for origin in (a, b, a, a)]
        await asyncio.sleep(0)
        assert budget.favour(2)
        await asyncio.sleep(0.01)
        # As many as it was given, and no more.
        assert passed == ["a", "a"]
        # It stays the favourite while it has something that waits.
        assert budget.favour(9)
        await asyncio.sleep(0.01)
        assert passed == ["a", "a", "a"]
        assert budget.favour(9)
        await asyncio.gather(*tasks)
        assert passed == ["a", "a", "a", "b"]
        assert not budget.favour(1)

    asyncio.run(main())


def test_opening_lets_everybody_through():
    async def main():
        budget = Budget(1, asyncio.get_running_loop())
        budget.add(100)
        origin = Input("a", 0, None, None)
        tasks = [
            asyncio.create_task(budget.child(10, origin)),
            asyncio.create_task(budget.input(10)),
        ]
        await asyncio.sleep(0)
        budget.open()
        await asyncio.gather(*tasks)

    asyncio.run(main())


# In a run.


class Live:
    """Counts the bytes of what stages have made and the sink has not taken yet."""

    def __init__(self):
        self.lock = threading.Lock()
        self.now = self.peak = 0

    def made(self, size):
        with self.lock:
            self.now += size
            self.peak = max(self.peak, self.now)

    def gone(self, size):
        with self.lock:
            self.now -= size


def run_with_budget(pipeline):
    """Run and return the report and the budget."""

    async def main():
        run = Run(pipeline)
        await run.start()
        await run.wait()
        return await run.close(), run.budget

    return asyncio.run(main())


SIZE = 1 << 16
LIMIT = 20 * SIZE


@pytest.mark.parametrize("place", ["loop", "threads", "blocking", "processes"])
def test_a_fan_out_faster_than_its_sink_stays_below_the_limit(place):
    options = {"blocking": True} if place == "blocking" else {"on": place}

    async def sink(value):
        await asyncio.sleep(0)

    pipeline = (
        tn.Pipeline(range(4), memory_limit=LIMIT)
        .flat_map(blobs, **options)
        .for_each(sink, concurrency=1)
    )
    report, budget = run_with_budget(pipeline)
    assert report.outputs == 4 * 200
    assert budget.total == 0
    # Each worker may deliver the two parts, of a quarter of its share, that it had in hand.
    slack = 0 if place == "loop" else LIMIT // 2 + 8 * SIZE
    assert budget.peak <= LIMIT + slack + 1000


def blobs(n):
    for i in range(200):
        yield bytes([i % 256]) * SIZE


def test_a_slow_fan_out_in_threads_stays_below_the_limit():
    """Each result takes longer than the hand-over, so that the bound is that of the memory and not of a chunk."""
    gate = threading.Event()

    def slowly(n):
        for _ in range(60):
            gate.wait(0.006)
            yield b"x" * SIZE

    async def sink(value):
        await asyncio.sleep(0.01)

    pipeline = (
        tn.Pipeline(range(4), memory_limit=LIMIT).flat_map(slowly).for_each(sink, concurrency=1)
    )
    report, budget = run_with_budget(pipeline)
    assert report.outputs == 240
    assert budget.peak <= LIMIT + 8 * SIZE


@pytest.mark.parametrize("place", ["loop", "fused", "blocking", "threads"])
def test_a_stage_that_makes_large_values_of_small_ones_keeps_to_the_limit(place):
    """Reading files is that: 64 paths weigh nothing, 64 files do."""
    live = Live()

    async def read(n):
        await asyncio.sleep(0)
        live.made(SIZE)
        return b"x" * SIZE

    def read_now(n):
        live.made(SIZE)
        return b"x" * SIZE

    async def check(value):
        await asyncio.sleep(0)
        return value

    def drop(value):
        live.gone(len(value))

    pipeline = tn.Pipeline(range(400), memory_limit=LIMIT)
    if place == "blocking":
        pipeline = pipeline.map(read_now, blocking=True, concurrency=64)
    elif place == "threads":
        pipeline = pipeline.map(read_now)
    elif place == "loop":
        pipeline = pipeline.map(read).batch(1).unbatch()
    else:
        pipeline = pipeline.map(read).map(check, concurrency=1)
    report, budget = run_with_budget(pipeline.for_each(drop, blocking=True, concurrency=1))
    assert report.done == 400
    assert max(budget.peak, live.peak) <= LIMIT + 12 * SIZE


def test_a_memory_limit_does_not_keep_calls_that_do_not_grow_from_running_together():
    """All 40 calls have to be in progress at once before any may end, once the first few have shown how little they take."""
    inside = 0
    everybody = asyncio.Event()

    async def meet(n):
        nonlocal inside
        if n < 8:
            return n
        inside += 1
        if inside == 40:
            everybody.set()
        await everybody.wait()
        return n

    assert tn.Pipeline(range(48), memory_limit="1 GB").map(meet, concurrency=40).run().done == 48


def test_inputs_wait_for_memory():
    live = Live()

    def source():
        for _ in range(200):
            live.made(SIZE)
            yield b"x" * SIZE

    async def sink(value):
        await asyncio.sleep(0)
        live.gone(SIZE)

    pipeline = tn.Pipeline(source, memory_limit=LIMIT).for_each(sink)
    report, budget = run_with_budget(pipeline)
    assert report.done == 200
    assert budget.peak <= LIMIT
    assert budget.total == 0


def test_an_item_larger_than_the_limit_passes_alone():
    async def through(value):
        await asyncio.sleep(0)
        return value

    pipeline = tn.Pipeline([b"x" * 1000] * 20, memory_limit=10).map(through)
    report, budget = run_with_budget(pipeline)
    assert report.done == 20
    assert budget.peak < 2500


@pytest.mark.parametrize("place", ["loop", "threads", "processes"])
def test_gathering_inputs_larger_than_the_limit_does_not_deadlock_and_holds_few_at_a_time(place):
    pipeline = (
        tn.Pipeline(range(10), memory_limit=SIZE * 8).flat_map(thirty, on=place).gather().map(len)
    )
    report, budget = run_with_budget(pipeline)
    assert (report.done, report.outputs) == (10, 10)
    assert budget.total == 0
    if place == "loop":
        # The limit, and one input past it.
        assert budget.peak <= SIZE * (8 + 30 + 2)


def thirty(n):
    for _ in range(30):
        yield b"x" * SIZE


@pytest.mark.parametrize("place", ["loop", "threads"])
def test_parents_that_fill_the_limit_do_not_keep_their_results_out(place):
    def grows(value):
        for _ in range(5):
            yield value + value

    options = {"on": "loop", "concurrency": 1} if place == "loop" else {"max_workers": 1}
    pipeline = (
        tn.Pipeline([b"x" * 4000] * 30, memory_limit=10_000).flat_map(grows, **options).map(len)
    )
    report, budget = run_with_budget(pipeline)
    assert (report.outputs, budget.total) == (150, 0)


@pytest.mark.parametrize("place", ["loop", "threads"])
def test_two_gathers_under_a_small_limit_do_not_deadlock(place):
    def pieces(group):
        return [bytes(piece) for piece in group]

    pipeline = (
        tn.Pipeline(range(8), memory_limit=5000)
        .flat_map(small, on=place)
        .gather()
        .flat_map(pieces, on=place)
        .ordered()
        .gather()
    )
    report, budget = run_with_budget(pipeline)
    assert (report.outputs, budget.total) == (8, 0)


def small(n):
    for _ in range(20):
        yield b"y" * 500


@pytest.mark.parametrize("limit", [100, 20_000])
def test_batches_and_what_is_made_of_them_are_counted_and_given_back(limit):
    async def longer(values):
        return [value + b"1" for value in values]

    async def fewer(values):
        return values[:1]

    for stage, outputs in ((longer, 300), (fewer, 75)):
        pipeline = (
            tn.Pipeline([b"x" * 1000 for _ in range(300)], memory_limit=limit)
            .batch(4)
            .map(stage)
            .unbatch()
        )
        report, budget = run_with_budget(pipeline)
        assert report.done == 300
        assert budget.total == 0
        if limit > 100:
            assert report.outputs == outputs


def test_a_batch_that_waits_for_more_while_the_source_waits_for_memory_goes():
    pipeline = tn.Pipeline([b"x" * 1000] * 50, memory_limit=5000).batch(40)
    report, budget = run_with_budget(pipeline)
    assert (report.done, budget.total) == (50, 0)
    pipeline = tn.Pipeline([b"x" * 1000] * 50, memory_limit=5000).map_batches(
        list, size=40, max_wait=3600, on="loop"
    )
    assert run_with_budget(pipeline)[0].done == 50
    pipeline = tn.Pipeline([b"x" * 1000] * 50, memory_limit=5000).map_batches(
        list, size=40, max_wait=3600
    )
    assert run_with_budget(pipeline)[0].done == 50


def test_failed_and_dropped_items_give_their_memory_back():
    def odd(value):
        if len(value) % 2:
            raise ValueError
        return len(value) % 4 == 0

    items = [b"x" * (1000 + n) for n in range(100)]
    for place in ("loop", "threads"):
        pipeline = tn.Pipeline(items, memory_limit=8000, on_error="skip").filter(odd, on=place)
        report, budget = run_with_budget(pipeline)
        assert (report.failed, report.filtered, report.done) == (50, 25, 25)
        assert budget.total == 0
