"""Where inputs come from: read ahead by a little, never in the way of the loop."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path, PurePosixPath

import pytest

import core_samples as samples
import tournant as tn


async def same(value):
    return value


@pytest.mark.parametrize(
    "source",
    [
        [1, 2, 3],
        (1, 2, 3),
        range(1, 4),
        {1: "a", 2: "b", 3: "c"},
        {1: 0, 2: 0, 3: 0}.keys(),
        {"a": 1, "b": 2, "c": 3}.values(),
        {1, 2, 3},
        frozenset({1, 2, 3}),
        bytearray(b"\x01\x02\x03"),
    ],
)
def test_any_iterable_is_a_source(source):
    for inline in (False, True):
        assert sorted(tn.Pipeline(source).map(same).collect(inline=inline)) == [1, 2, 3]


class OldStyle:
    def __getitem__(self, index):
        if index >= 3:
            raise IndexError
        return index


def test_generators_iterators_and_old_style_sequences_are_sources():
    for source in (iter([0, 1, 2]), (n for n in range(3)), OldStyle()):
        assert sorted(tn.Pipeline(source).map(same).collect()) == [0, 1, 2]


def test_an_empty_source_gives_an_empty_run():
    for source in ([], iter(()), (n for n in ())):
        report = tn.Pipeline(source).map(same).map(samples.inc).gather().run()
        assert (report.sourced, report.outputs) == (0, 0)


def test_a_pipeline_without_stages_passes_its_inputs_through():
    assert tn.Pipeline(range(5)).collect() == list(range(5))
    assert tn.Pipeline(range(5)).run().done == 5
    assert list(tn.Pipeline(n for n in range(5)).iter()) == list(range(5))


def test_a_factory_is_called_for_each_run():
    pipeline = tn.Pipeline(lambda: (n for n in range(3))).map(same)
    assert pipeline.collect() == pipeline.collect() == [0, 1, 2]


def test_a_factory_may_give_an_async_iterable():
    async def numbers():
        for n in range(3):
            await asyncio.sleep(0)
            yield n

    assert tn.Pipeline(numbers).map(same).collect() == [0, 1, 2]
    assert tn.Pipeline(lambda: numbers()).map(same).collect() == [0, 1, 2]
    assert tn.Pipeline(numbers()).map(same).collect(inline=True) == [0, 1, 2]


def test_a_factory_that_raises_fails_the_run():
    def broken():
        raise OSError("no such bucket")

    with pytest.raises(tn.SourceFailed, match="no such bucket"):
        tn.Pipeline(broken).map(same).run()


@pytest.mark.parametrize("kind", ["plain", "async", "inline"])
def test_what_came_before_a_sources_error_goes_through(kind):
    def plain():
        yield from range(10)
        raise OSError("the disk is gone")

    async def coroutine():
        for n in range(10):
            yield n
        raise OSError("the disk is gone")

    seen = []
    source = coroutine if kind == "async" else plain
    with pytest.raises(tn.SourceFailed, match="the disk is gone") as caught:
        tn.Pipeline(source).for_each(seen.append, on="loop").run(inline=kind == "inline")
    assert seen == list(range(10))
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.report.done == 10


@pytest.mark.parametrize("leave", [SystemExit(3), KeyboardInterrupt(), GeneratorExit()])
def test_a_source_that_would_end_the_program_ends_the_run(leave):
    def source():
        yield 1
        raise leave

    with pytest.raises(tn.SourceFailed):
        tn.Pipeline(source).map(same).run()


def test_a_source_that_blocks_does_not_block_the_loop():
    """The source waits for what only a stage on the loop can give it."""
    went_through = threading.Event()

    def source():
        yield "first"
        assert went_through.wait(30)
        yield "second"

    async def stage(value):
        went_through.set()
        return value

    assert tn.Pipeline(source).map(stage).collect() == ["first", "second"]


def test_a_source_is_not_read_far_ahead():
    pulled = 0
    gate = threading.Event()

    def source():
        nonlocal pulled
        for n in range(100_000):
            pulled += 1
            yield n

    async def blocked(value):
        await asyncio.to_thread(gate.wait)

    watched = []
    thread = threading.Thread(
        target=lambda: tn.Pipeline(source).map(blocked, concurrency=2).run(on_start=watched.append)
    )
    thread.start()
    last = -1
    while pulled != last or not watched:
        last = pulled
        time.sleep(0.05)
    watched[0].cancel()
    gate.set()
    thread.join(20)
    assert not thread.is_alive()
    assert pulled < 500


def test_a_source_held_back_by_memory_sleeps():
    """However long the consumer takes, the source's thread does not spin."""
    gate = threading.Event()

    def source():
        for _ in range(100):
            yield b"x" * 10_000

    async def blocked(value):
        await asyncio.to_thread(gate.wait)

    watched = []
    thread = threading.Thread(
        target=lambda: (
            tn.Pipeline(source, memory_limit=40_000).map(blocked).run(on_start=watched.append)
        )
    )
    thread.start()
    (puller,) = [t for t in iter_threads("tournant-source")]
    settle(lambda: watched and watched[0].snapshot().sourced)
    spent = thread_time(puller)
    threading.Event().wait(0.3)
    assert thread_time(puller) - spent <= 0.02
    gate.set()
    thread.join(20)
    assert not thread.is_alive()


def iter_threads(name):
    due = time.monotonic() + 10
    while time.monotonic() < due:
        found = [t for t in threading.enumerate() if t.name == name]
        if found:
            return found
        time.sleep(0.002)
    raise AssertionError(f"no thread {name}")


def settle(look):
    last = object()
    while look() != last:
        last = look()
        time.sleep(0.05)


def thread_time(thread):
    with open(f"/proc/self/task/{thread.native_id}/stat") as file:
        fields = file.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / 100


def test_stopping_does_not_wait_for_a_source_that_never_answers():
    never = threading.Event()

    def source():
        yield 1
        never.wait(60)

    async def async_source():
        yield 1
        await asyncio.Event().wait()

    try:
        for make in (source, async_source):
            for how in ("drain", "cancel", "leave"):

                async def main(make=make, how=how):
                    async with tn.Pipeline(make).map(same).open() as run:
                        async for _ in run:
                            if how == "leave":
                                break
                            getattr(run, how)()
                    return run.report

                report = asyncio.run(main())
                assert report.sourced == 1
                assert report.done == (1 if how == "drain" else report.done)
    finally:
        never.set()


def test_a_drain_before_the_first_item_ends_the_run_too():
    never = threading.Event()

    def source():
        never.wait(60)
        yield 1

    try:
        report = tn.Pipeline(source).map(same).run(on_start=lambda run: run.drain())
    finally:
        never.set()
    assert report.sourced == 0


def test_a_source_that_is_left_early_is_closed(until):
    closed = []

    def source():
        try:
            yield from range(10_000)
        finally:
            closed.append("plain")

    async def async_source():
        try:
            for n in range(10_000):
                yield n
        finally:
            closed.append("async")

    for make in (source, async_source):
        for _ in tn.Pipeline(make).map(same).iter():
            break
    assert until(lambda: closed == ["plain", "async"])


def test_a_source_whose_closing_raises_is_a_warning():
    def source():
        try:
            yield from range(1000)
        finally:
            raise OSError("can't close")

    async def main():
        async with tn.Pipeline(source).map(same).open() as run:
            async for _ in run:
                break
        return run.report

    assert any("can't close" in w for w in asyncio.run(main()).warnings)


# Keys.


def keys_of(source, **options):
    """The keys under which a run knows its inputs."""

    def fail(value):
        raise ValueError

    report = tn.Pipeline(source, on_error="skip", **options).map(fail, on="loop").run()
    return [failure.key for failure in report.failures]


def test_an_inputs_key_is_its_text_or_path_or_else_its_position():
    assert keys_of(["a", "b"]) == ["a", "b"]
    assert keys_of([Path("/x/y"), PurePosixPath("z")]) == ["/x/y", "z"]
    assert keys_of([b"a", 7, None, ("t",)]) == [0, 1, 2, 3]
    assert keys_of(iter(["a", 5])) == ["a", 1]


def test_a_key_can_be_given():
    assert keys_of([{"id": "x"}, {"id": "y"}], key=lambda item: item["id"]) == ["x", "y"]
    assert keys_of(iter([{"id": "x"}]), key=lambda item: item["id"]) == ["x"]


@pytest.mark.parametrize("make", [list, iter])
def test_a_key_that_raises_fails_the_run_and_names_the_input(make):
    with pytest.raises(tn.SourceFailed, match=r"key= raised KeyError for the input \{'name': 1\}"):
        tn.Pipeline(make([{"name": 1}]), key=lambda item: item["id"]).map(same).run()


def test_a_fingerprint_that_raises_fails_the_run():
    def broken(value):
        raise OSError("gone")

    with pytest.raises(tn.SourceFailed, match="gone"):
        tn.Pipeline([1], fingerprint=broken).map(same).run()
