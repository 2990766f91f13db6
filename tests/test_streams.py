from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tournant import streams, sync
from tournant.errors import TournantError
from tournant.streams import InvalidStream, Stream, StreamBusy, StreamTimeout


class Source:
    """Gives its items, each after some turns of the loop; then ends, raises, or never says another word."""

    def __init__(
        self,
        items: Iterable[Any],
        pauses: Sequence[int] = (),
        *,
        error: Exception | None = None,
        hangs: bool = False,
    ) -> None:
        self.items = list(items)
        self.pauses = pauses or (0,)
        self.error = error
        self.hangs = hangs
        self.given = 0
        self.closed = 0
        self.reading = False

    def __aiter__(self) -> Source:
        return self

    async def __anext__(self) -> Any:
        assert not self.reading, "two readers at once"
        assert not self.closed, "read after it was closed"
        self.reading = True
        try:
            await turns(self.pauses[self.given % len(self.pauses)])
            if self.given < len(self.items):
                self.given += 1
                return self.items[self.given - 1]
            if self.hangs:
                await asyncio.Event().wait()
            raise self.error or StopAsyncIteration
        finally:
            self.reading = False

    async def aclose(self) -> None:
        assert not self.reading, "closed while it was read"
        await asyncio.sleep(0)
        self.closed += 1


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(100_000):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("it never came about")


def run(test: Callable[[], Awaitable[Any]]) -> Any:
    """Run a test on a loop of its own; what it leaves behind fails it."""

    async def main() -> Any:
        lost: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: lost.append(context))
        async with asyncio.timeout(20):
            result = await test()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left, left
        gc.collect(0)
        assert not lost, lost
        return result

    return asyncio.run(main())


async def read(stream: AsyncIterator[Any], pauses: Sequence[int] = ()) -> list[Any]:
    found = []
    async for item in stream:
        found.append(item)
        await turns(pauses[len(found) % len(pauses)] if pauses else 0)
    return found


# Every operator as a stream over one source, with the items it gives for 0..n-1.
OPERATORS: dict[str, Callable[[Any], Stream[Any]]] = {
    "Stream": Stream,
    "map": lambda source: streams.map(source, lambda item: item),
    "take": lambda source: streams.take(source, 10_000),
    "chain": lambda source: streams.chain(source, Source([])),
    "buffered": lambda source: streams.buffered(source, 3),
    "merge": lambda source: streams.merge(source, Source([])),
    "batch": lambda source: streams.batch(source, 2),
    "timed batch": lambda source: streams.batch(source, 2, max_wait=30),
    "tee": lambda source: streams.tee(source, 1)[0],
    "timeout": lambda source: streams.timeout(source, first=30, between=30),
    "all": lambda source: (
        Stream(source).buffered(2).map(str).timeout(between=30).batch(2).take(10_000).buffered(1)
    ),
}
every_operator = pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS.keys())
pauses = st.lists(st.integers(0, 4), max_size=5)


def flat(name_or_items: list[Any]) -> list[Any]:
    return [
        int(part) for item in name_or_items for part in (item if isinstance(item, list) else [item])
    ]


# What every operator keeps.


@every_operator
@settings(deadline=None, max_examples=40)
@given(count=st.integers(0, 12), slow_source=pauses, slow_reader=pauses)
def test_items_and_order_are_kept_at_any_pace(
    operator: Any, count: int, slow_source: list[int], slow_reader: list[int]
) -> None:
    async def test() -> None:
        source = Source(range(count), slow_source)
        assert flat(await read(operator(source), slow_reader)) == list(range(count))
        assert source.closed == 1

    run(test)


@every_operator
@pytest.mark.parametrize("way", ["aclose", "with", "error", "cancel", "forget"])
@settings(deadline=None, max_examples=20)
@given(after=st.integers(0, 30), slow_source=pauses, slow_reader=pauses)
def test_leaving_at_any_moment_closes_the_source_and_leaves_no_task(
    operator: Any, way: str, after: int, slow_source: list[int], slow_reader: list[int]
) -> None:
    async def reader(stream: Stream[Any]) -> None:
        if way == "forget":
            await read(stream, slow_reader)
        async with stream:
            await read(stream, slow_reader)

    async def leaver(stream: Stream[Any], items: int) -> None:
        for _ in range(items):
            await anext(stream)
        if way == "aclose":
            await stream.aclose()
            return
        async with stream:
            if way == "error":
                raise ZeroDivisionError

    async def test() -> None:
        source = Source(range(12), slow_source, hangs=True)
        stream = operator(source)
        if way in ("cancel", "forget"):
            reading = asyncio.create_task(reader(stream))
            await turns(after)
            reading.cancel()
            await asyncio.wait([reading])
            assert reading.cancelled()
            if way == "forget":
                del stream, reading
                gc.collect()
                await until(lambda: source.closed > 0)
                await turns(10)
            elif after == 0:  # before its first step, so that it never saw the stream
                await stream.aclose()
        else:
            (outcome,) = await asyncio.gather(leaver(stream, after // 6), return_exceptions=True)
            assert isinstance(outcome, ZeroDivisionError) == (way == "error")
        assert source.closed == 1

    run(test)


@every_operator
@settings(deadline=None, max_examples=25)
@given(count=st.integers(0, 8), slow_source=pauses, slow_reader=pauses)
def test_what_the_source_raises_arrives_after_its_items(
    operator: Any, count: int, slow_source: list[int], slow_reader: list[int]
) -> None:
    async def test() -> None:
        source = Source(range(count), slow_source, error=LookupError("broken"))
        stream = operator(source)
        found = []
        with pytest.raises(LookupError, match="broken"):
            async for item in stream:
                found.append(item)
                await turns(slow_reader[len(found) % len(slow_reader)] if slow_reader else 0)
        assert source.closed == 1
        assert flat(found) == list(range(count))
        assert await read(stream) == [], "it has ended"

    run(test)


@every_operator
def test_an_async_generator_is_closed_in_its_finally_when_the_reader_breaks(operator: Any) -> None:
    async def test() -> None:
        events = []

        async def tokens() -> AsyncIterator[int]:
            try:
                for number in range(1000):
                    yield number
                    await asyncio.sleep(0)
            finally:
                await asyncio.sleep(0)
                events.append("closed")

        async with operator(tokens()) as stream:
            async for _ in stream:
                break
        assert events == ["closed"]
        async for _ in operator(tokens()):
            break
        await until(lambda: len(events) == 2)
        await turns(10)

    run(test)


@every_operator
def test_a_cancelled_reader_has_closed_the_source_by_the_time_it_ends(operator: Any) -> None:
    async def test() -> None:
        source = Source([], hangs=True)
        stream = operator(source)
        reading = asyncio.create_task(read(stream))
        await until(lambda: source.reading)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert source.closed == 1
        assert await read(stream) == []

    run(test)


@every_operator
def test_a_stream_never_read_closes_its_source_all_the_same(operator: Any) -> None:
    async def test() -> None:
        source = Source(range(3))
        async with operator(source):
            pass
        assert source.closed == 1
        await operator(forgotten := Source(range(3))).aclose()
        assert forgotten.closed == 1
        assert forgotten.given == 0

    run(test)


@every_operator
def test_what_closing_raises_is_raised(operator: Any) -> None:
    class Stubborn(Source):
        async def aclose(self) -> None:
            await super().aclose()
            raise OSError("connection reset")

    async def test() -> None:
        source = Stubborn(range(3), hangs=True)
        stream = operator(source)
        await anext(stream)
        with pytest.raises(OSError, match="reset"):
            await stream.aclose()
        assert source.closed == 1
        await stream.aclose()

    run(test)


@every_operator
def test_a_second_reader_is_told_to_tee(operator: Any) -> None:
    async def test() -> None:
        source = Source([], hangs=True)
        stream = operator(source)
        reading = asyncio.create_task(anext(stream))
        await until(lambda: source.reading)
        with pytest.raises(StreamBusy, match="tee"):
            await anext(stream)
        reading.cancel()
        await asyncio.wait([reading])
        assert source.closed == 1

    run(test)


@every_operator
def test_a_source_that_is_none_is_refused_with_the_mend(operator: Any) -> None:
    async def tokens() -> AsyncIterator[int]:
        yield 1

    with pytest.raises(InvalidStream, match="call it"):
        operator(tokens)
    with pytest.raises(InvalidStream, match="async iterable"):
        operator([1, 2])
    assert issubclass(InvalidStream, TournantError)


@every_operator
def test_synchronous_code_reads_it_and_may_leave_early(operator: Any) -> None:
    source = Source(range(5))
    assert flat(list(sync.iterate(operator(source)))) == [0, 1, 2, 3, 4]
    assert source.closed == 1
    source = Source(range(5), hangs=True)
    iterator = sync.iterate(operator(source))
    assert flat([next(iterator)])[0] == 0
    iterator.close()  # type: ignore[attr-defined]
    assert source.closed == 1


def test_closing_from_another_task_ends_a_waiting_reader_where_a_pump_stands_between() -> None:
    async def test() -> None:
        async def silent() -> AsyncIterator[int]:
            await asyncio.Event().wait()
            yield 1

        stream = Stream(streams.buffered(silent(), 1)).map(str)
        reading = asyncio.create_task(read(stream))
        await turns(5)
        await stream.aclose()
        assert await reading == []

        direct = Stream(Stream(silent()))
        reading = asyncio.create_task(read(direct))
        await turns(5)
        with pytest.raises(StreamBusy, match="cancel that task"):
            await direct.aclose()
        reading.cancel()
        await asyncio.wait([reading])
        assert reading.cancelled()

    run(test)


# buffered


@settings(deadline=None)
@given(size=st.integers(1, 5), slow_source=pauses, slow_reader=pauses)
def test_the_producer_runs_ahead_as_far_as_the_buffer_and_no_further(
    size: int, slow_source: list[int], slow_reader: list[int]
) -> None:
    async def test() -> None:
        source = Source(range(20), slow_source)
        taken = 0
        async for _ in streams.buffered(source, size):
            taken += 1
            assert source.given <= taken + size
            await turns(slow_reader[taken % len(slow_reader)] if slow_reader else 0)
            assert source.given <= taken + size
        assert taken == 20

    run(test)


def test_the_producer_works_while_the_reader_does() -> None:
    async def test() -> None:
        source = Source(range(10))
        stream = streams.buffered(source, 4)
        assert source.given == 0
        await anext(stream)
        await until(lambda: source.given == 5)
        await turns(20)
        assert source.given == 5
        await stream.aclose()

    run(test)


# merge


@settings(deadline=None)
@given(
    sources=st.lists(st.tuples(st.integers(0, 8), pauses), min_size=1, max_size=4),
    slow_reader=pauses,
)
def test_merged_sources_give_everything_each_in_its_own_order(
    sources: list[tuple[int, list[int]]], slow_reader: list[int]
) -> None:
    async def test() -> None:
        made = [
            Source([(number, item) for item in range(count)], pace)
            for number, (count, pace) in enumerate(sources)
        ]
        found = await read(streams.merge(*made), slow_reader)
        for number, (count, _) in enumerate(sources):
            assert [item for who, item in found if who == number] == list(range(count))
        assert [source.closed for source in made] == [1] * len(made)

    run(test)


def test_a_quiet_source_holds_nobody_up_and_a_busy_one_takes_no_more_than_its_turn() -> None:
    async def test() -> None:
        quiet, busy, steady = Source([], hangs=True), Source(["b"] * 500), Source(["s"] * 20)
        stream = streams.merge(quiet, busy, steady)
        first = [await anext(stream) for _ in range(30)]
        assert first.count("s") >= 8
        await turns(20)
        assert busy.given + steady.given <= 30 + 3
        await stream.aclose()
        assert quiet.closed == busy.closed == steady.closed == 1

    run(test)


def test_when_one_merged_source_raises_the_others_are_closed() -> None:
    async def test() -> None:
        good, bad = Source([], hangs=True), Source([1, 2], error=ValueError("bad"))
        stream = streams.merge(good, bad)
        assert [await anext(stream), await anext(stream)] == [1, 2]
        with pytest.raises(ValueError, match="bad"):
            await anext(stream)
        assert good.closed == bad.closed == 1

    run(test)


# tee


@settings(deadline=None)
@given(
    count=st.integers(0, 15), buffer=st.integers(1, 4), slow_source=pauses, readers=st.lists(pauses, min_size=1, max_size=4)
)  # fmt: skip
def test_every_branch_gives_every_item_in_order(
    count: int, buffer: int, slow_source: list[int], readers: list[list[int]]
) -> None:
    async def test() -> None:
        source = Source(range(count), slow_source)
        branches = streams.tee(source, len(readers), buffer=buffer)
        found = await asyncio.gather(*map(read, branches, readers))
        assert found == [list(range(count))] * len(readers)
        assert source.closed == 1
        assert [branch.dropped for branch in branches] == [0] * len(readers)

    run(test)


@settings(deadline=None)
@given(
    count=st.integers(0, 30), buffer=st.integers(1, 4), slow_source=pauses, slow_reader=pauses, slow_log=pauses
)  # fmt: skip
def test_a_branch_that_drops_loses_the_oldest_counts_them_and_holds_nobody_up(
    count: int,
    buffer: int,
    slow_source: list[int],
    slow_reader: list[int],
    slow_log: list[int],
) -> None:
    async def test() -> None:
        source = Source(range(count), slow_source)
        screen, log = streams.tee(source, buffer=buffer, drop_oldest=[False, True])
        kept, logged = await asyncio.gather(read(screen, slow_reader), read(log, slow_log))
        assert kept == list(range(count))
        assert logged == sorted(logged)
        assert len(logged) + log.dropped == count
        assert logged[-buffer:] == kept[-buffer:], "the newest are never dropped"

    run(test)


def test_a_branch_that_drops_need_not_be_read_at_all() -> None:
    async def test() -> None:
        screen, log = streams.tee(Source(range(100)), buffer=4, drop_oldest=[False, True])
        assert await read(screen) == list(range(100))
        assert log.dropped == 96
        assert await read(log) == [96, 97, 98, 99]
        assert log.dropped == 96

    run(test)


def test_the_slowest_branch_bounds_the_source_until_it_leaves() -> None:
    async def test() -> None:
        source = Source(range(100))
        fast, slow = streams.tee(source, buffer=3)
        reading = asyncio.create_task(read(fast))
        await turns(50)
        assert source.given == 3
        assert await anext(slow) == 0
        await turns(50)
        assert source.given == 4
        await slow.aclose()
        assert await reading == list(range(100))
        assert source.closed == 1

    run(test)


@settings(deadline=None)
@given(leave=st.lists(st.integers(0, 10), min_size=1, max_size=4), slow_source=pauses)
def test_the_source_lives_as_long_as_its_last_branch(
    leave: list[int], slow_source: list[int]
) -> None:
    async def test() -> None:
        source = Source(range(10), slow_source, hangs=True)
        branches = streams.tee(source, len(leave), buffer=2)
        present = len(leave)

        async def reader(branch: streams.Branch[int], after: int) -> list[int]:
            nonlocal present
            found: list[int] = []
            async with branch:
                while len(found) < after:
                    assert not source.closed
                    found.append(await anext(branch))
                present -= 1
            assert source.closed == (not present) or present
            return found

        found = await asyncio.gather(*map(reader, branches, leave))
        assert found == [list(range(after)) for after in leave]
        assert source.closed == 1

    run(test)


def test_a_cancelled_branch_leaves_the_others_their_stream() -> None:
    async def test() -> None:
        go = asyncio.Event()

        async def tokens() -> AsyncIterator[int]:
            yield 0
            await go.wait()
            yield 1

        first, second = streams.tee(tokens())
        reading = asyncio.create_task(read(first))
        staying = asyncio.create_task(read(second))
        await turns(10)
        reading.cancel()
        await asyncio.wait([reading])
        go.set()
        assert await staying == [0, 1]

    run(test)


def test_what_the_source_raises_reaches_every_branch() -> None:
    async def test() -> None:
        branches = streams.tee(Source([1], error=OSError("cut")), 3)
        outcomes = await asyncio.gather(*map(read, branches), return_exceptions=True)
        assert [str(outcome) for outcome in outcomes] == ["cut"] * 3

    run(test)


def test_a_forgotten_branch_holds_nobody_up() -> None:
    async def test() -> None:
        branches = list(streams.tee(Source(range(50)), buffer=2))
        reading = asyncio.create_task(read(branches[0]))
        await turns(20)
        assert not reading.done()
        del branches
        gc.collect()
        assert await reading == list(range(50))

    run(test)


# timeout


def test_a_first_item_that_does_not_come_is_a_timeout_that_closes_the_source() -> None:
    async def test() -> None:
        source = Source([], hangs=True)
        with pytest.raises(StreamTimeout, match=r"0\.001 s, and the first item"):
            await anext(streams.timeout(source, first=0.001))
        assert source.closed == 1
        assert issubclass(StreamTimeout, TimeoutError)

    run(test)


def test_a_gap_is_a_timeout_that_says_after_which_item() -> None:
    async def test() -> None:
        source = Source([1, 2], hangs=True)
        stream = streams.timeout(source, between=0.001)
        assert [await anext(stream), await anext(stream)] == [1, 2]
        with pytest.raises(StreamTimeout, match="after item 2"):
            await anext(stream)
        assert source.closed == 1
        assert await read(stream) == []

    run(test)


def test_a_timeout_of_the_sources_own_and_a_readers_own_are_told_apart() -> None:
    async def test() -> None:
        stream = streams.timeout(Source([], error=TimeoutError("theirs")), first=30)
        with pytest.raises(TimeoutError, match="theirs") as caught:
            await anext(stream)
        assert not isinstance(caught.value, StreamTimeout)
        source = Source([], hangs=True)
        with pytest.raises(TimeoutError) as caught:
            async with asyncio.timeout(0.001):
                await anext(streams.timeout(source, first=30))
        assert not isinstance(caught.value, StreamTimeout)
        assert source.closed == 1

    run(test)


# batch


@settings(deadline=None)
@given(
    count=st.integers(0, 20), size=st.integers(1, 6), slow_source=pauses, slow_reader=pauses, timed=st.booleans()
)  # fmt: skip
def test_batches_keep_everything_and_are_full_but_for_the_last(
    count: int, size: int, slow_source: list[int], slow_reader: list[int], timed: bool
) -> None:
    async def test() -> None:
        stream = streams.batch(Source(range(count), slow_source), size, 60 if timed else None)
        found = await read(stream, slow_reader)
        assert found == [list(range(at, min(at + size, count))) for at in range(0, count, size)]

    run(test)


@settings(deadline=None)
@given(count=st.integers(0, 20), size=st.integers(1, 6), slow_source=pauses)
def test_batches_that_cannot_wait_keep_everything_too(
    count: int, size: int, slow_source: list[int]
) -> None:
    async def test() -> None:
        found = await read(streams.batch(Source(range(count), slow_source), size, 1e-9))
        assert flat(found) == list(range(count))
        assert all(0 < len(batch) <= size for batch in found)

    run(test)


def test_a_partial_batch_goes_when_its_time_has_come() -> None:
    async def test() -> None:
        source = Source(range(3), hangs=True)
        stream = streams.batch(source, 100, max_wait=0.01)
        found: list[int] = []
        while len(found) < 3:
            found += await anext(stream)
        assert found == [0, 1, 2]
        await stream.aclose()
        assert source.closed == 1

    run(test)


def test_at_most_one_batch_is_collected_ahead() -> None:
    async def test() -> None:
        source = Source(range(50))
        stream = streams.batch(source, 4)
        assert await anext(stream) == [0, 1, 2, 3]
        await turns(50)
        assert source.given == 8
        await stream.aclose()

    run(test)


# map, take, chain


def test_map_takes_plain_and_coroutine_functions() -> None:
    async def double(item: int) -> int:
        await asyncio.sleep(0)
        return item * 2

    async def test() -> None:
        assert await read(streams.map(Source(range(3)), double)) == [0, 2, 4]
        assert await read(streams.map(Source([1, None]), lambda item: item)) == [1, None]
        source = Source([1, 0, 2])
        with pytest.raises(ZeroDivisionError):
            await read(streams.map(source, lambda item: 1 / item))
        assert source.closed == 1
        with pytest.raises(RuntimeError, match="StopAsyncIteration"):
            await read(streams.map(Source([1]), lambda _: raising(StopAsyncIteration())))

    run(test)


def raising(error: BaseException) -> None:
    raise error


def test_take_closes_before_the_last_item_is_handed_over() -> None:
    async def test() -> None:
        source = Source(range(10))
        stream = streams.take(source, 2)
        assert await anext(stream) == 0
        assert source.closed == 0
        assert await anext(stream) == 1
        assert source.closed == 1
        assert source.given == 2
        assert await read(stream) == []
        none = Source(range(10))
        assert await read(streams.take(none, 0)) == []
        assert (none.given, none.closed) == (0, 1)
        assert await read(streams.take(Source([1]), 5)) == [1]

    run(test)


def test_chain_reads_in_order_and_closes_also_what_it_has_not_come_to() -> None:
    async def test() -> None:
        assert await read(Stream(Source([1])).chain(Source([]), Source([2, 3]))) == [1, 2, 3]
        assert await read(streams.chain()) == []
        first, second = Source([1], hangs=True), Source([2])
        stream = streams.chain(first, second)
        await anext(stream)
        await stream.aclose()
        assert first.closed == second.closed == 1

    run(test)


# The whole


def test_nothing_is_suspended_inside_a_timeout_or_task_group() -> None:
    # A deadline of the reader's that passes between two reads must hit the reader, not the stream.
    async def test() -> None:
        async with aclosing(streams.timeout(Source(range(3)), between=30)) as stream:
            await anext(stream)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0):
                    await asyncio.Event().wait()
            assert await read(stream) == [1, 2]
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0

    run(test)


def test_a_stream_outlives_the_task_that_read_it_first() -> None:
    async def test() -> None:
        stream = Stream(Source(range(4))).buffered(2).timeout(between=30).batch(1)
        found = [await asyncio.create_task(anext(stream)) for _ in range(4)]
        assert flat(found) == [0, 1, 2, 3]
        assert await read(stream) == []

    run(test)


def test_the_fluent_form_reads_like_the_functions() -> None:
    async def test() -> None:
        source = Source(["the", "quick", "brown", "fox"])
        stream = (
            Stream(source)
            .timeout(first=30, between=30)
            .map(str.upper)
            .merge(Source([]))
            .chain(Source(["END"]))
            .buffered(2)
            .take(5)
            .batch(2, max_wait=30)
        )
        one, two = stream.tee(2)
        expected = [["THE", "QUICK"], ["BROWN", "FOX"], ["END"]]
        assert await asyncio.gather(read(one), read(two)) == [expected, expected]
        assert source.closed == 1

    run(test)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda s: streams.buffered(s, 0),
        lambda s: streams.buffered(s, True),
        lambda s: streams.batch(s, 0),
        lambda s: streams.batch(s, 2, 0),
        lambda s: streams.take(s, -1),
        lambda s: streams.tee(s, 0),
        lambda s: streams.tee(s, 2, buffer=0),
        lambda s: streams.tee(s, 2, drop_oldest=[True]),
        lambda s: streams.timeout(s),
        lambda s: streams.timeout(s, first=-1),
        lambda s: streams.map(s, 3),
        lambda s: streams.merge(),
    ],
)
def test_options_that_cannot_work_are_refused(wrong: Callable[[Any], Any]) -> None:
    with pytest.raises(InvalidStream, match="give"):
        wrong(Source([]))
