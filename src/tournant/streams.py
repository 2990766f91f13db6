"""Operators on async iterators, made for token streams: run ahead, merge, split, time out, batch, map, take, chain.

Each operator is a function from async iterables to a `Stream`, and a method of `Stream` as well::

    from tournant import streams

    async with streams.timeout(client.stream(prompt), first=10, between=2) as tokens:
        screen, log = tokens.batch(16, max_wait=0.05).tee(drop_oldest=[False, True])

A stream is an object, not an async generator. So nothing is ever suspended inside a task group or a timeout's scope (PEP 789), and
a reader may leave in any way: by `Stream.aclose`, the end of ``async with``, an exception, its task's cancellation, or by dropping the
last reference. The sources are closed then, at once, and no task stays behind. Nothing is started before the first item is asked for.

From synchronous code, read a stream through `tournant.sync.iterate`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Generic, TypeVar, cast, overload

from tournant._stream_checks import (
    InvalidStream,
    StreamBusy,
    StreamTimeout,
    iterator,
    seconds,
    whole,
)
from tournant._stream_lanes import Fork, Lane, Pumps, close, close_quietly, raise_first
from tournant.errors import short
from tournant.stages import is_coroutine_callable

__all__ = [
    "Branch",
    "InvalidStream",
    "Stream",
    "StreamBusy",
    "StreamTimeout",
    "batch",
    "buffered",
    "chain",
    "map",
    "merge",
    "take",
    "tee",
    "timeout",
]

T = TypeVar("T")
R = TypeVar("R")


class Stream(AsyncIterator[T]):
    """An async iterator with operators, closed by leaving it.

    As with a generator, an exception out of the stream (a cancellation included) ends it and closes its source.

    Args:
        source: An async iterable. Where its iterator has an ``aclose``, that is called when the reader leaves.

    Raises:
        InvalidStream: The source is no async iterable.
    """

    _closed = True  # until the constructor is through, for the finalizer's sake
    _reading = False
    _loop: asyncio.AbstractEventLoop | None = None

    def __init__(self, source: AsyncIterable[T]) -> None:
        self._source = iterator("Stream", source)
        self._opened()

    def _opened(self) -> None:
        self._closed = False
        try:
            self._loop = asyncio.get_running_loop()
        except RuntimeError:
            self._loop = None  # made outside of a loop; the first read tells

    def __aiter__(self) -> Stream[T]:
        return self

    async def __anext__(self) -> T:
        if self._closed:
            raise StopAsyncIteration
        if self._reading:
            raise StreamBusy(
                "this stream's next item is being waited for by another task, and an item goes to one reader only: "
                "give each reader a stream of its own with tee()"
            )
        self._reading = True
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        try:
            return await self._next()
        except BaseException:
            await self.aclose()
            raise
        finally:
            self._reading = False

    async def __aenter__(self) -> Stream[T]:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Leave the stream: end what runs for it and close its sources. Closing twice does nothing.

        Raises:
            StreamBusy: Another task waits for the source's next item, and the source can't be closed meanwhile. Cancel that task.
        """
        if self._closed:
            return
        self._closed = True
        try:
            await self._close()
        except StreamBusy:
            self._closed = False
            raise
        except RuntimeError as error:
            if self._reading and "already running" in str(error):
                self._closed = False
                raise StreamBusy(
                    "this stream's next item is being waited for by another task, so its source can't be closed: "
                    "cancel that task instead, which closes it, or put buffered(1) behind the source"
                ) from error
            raise

    def __del__(self) -> None:
        loop = self._loop
        if not self._closed and loop is not None and loop.is_running():
            with suppress(
                RuntimeError
            ):  # the loop may end meanwhile, and closes what is left itself
                loop.call_soon_threadsafe(_close_later, self)

    # What an operator defines.

    async def _next(self) -> T:
        return await anext(self._source)

    async def _close(self) -> None:
        await close(self._source)

    # The operators, as methods.

    def map(self, fn: Callable[[T], Any]) -> Stream[Any]:
        """See `map`."""
        return _Mapped(self, fn)

    def take(self, count: int) -> Stream[T]:
        """See `take`."""
        return take(self, count)

    def chain(self, *others: AsyncIterable[T]) -> Stream[T]:
        """See `chain`."""
        return chain(self, *others)

    def buffered(self, size: int) -> Stream[T]:
        """See `buffered`."""
        return buffered(self, size)

    def batch(self, size: int, max_wait: float | None = None) -> Stream[list[T]]:
        """See `batch`."""
        return batch(self, size, max_wait)

    def merge(self, *others: AsyncIterable[T]) -> Stream[T]:
        """See `merge`."""
        return merge(self, *others)

    def tee(
        self, readers: int = 2, *, buffer: int = 16, drop_oldest: bool | Sequence[bool] = False
    ) -> tuple[Branch[T], ...]:
        """See `tee`."""
        return tee(self, readers, buffer=buffer, drop_oldest=drop_oldest)

    def timeout(self, *, first: float | None = None, between: float | None = None) -> Stream[T]:
        """See `timeout`."""
        return timeout(self, first=first, between=between)


@overload
def map(source: AsyncIterable[T], fn: Callable[[T], Awaitable[R]]) -> Stream[R]: ...
@overload
def map(source: AsyncIterable[T], fn: Callable[[T], R]) -> Stream[R]: ...
def map(source: AsyncIterable[T], fn: Callable[[T], Any]) -> Stream[Any]:
    """Apply `fn` to every item, one at a time and in order.

    Args:
        source: An async iterable.
        fn: A plain function, which runs on the loop and so must be short, or a coroutine function.
    """
    return _Mapped(source, fn)


def take(source: AsyncIterable[T], count: int) -> Stream[T]:
    """End after `count` items. The source is closed before the last of them is handed over, not when one more is asked for."""
    return _Taken(source, count)


def chain(*sources: AsyncIterable[T]) -> Stream[T]:
    """Read the sources one after the other. Leaving closes all of them, also those whose turn had not come."""
    return _Chained(sources)


def buffered(source: AsyncIterable[T], size: int) -> Stream[T]:
    """Let the source run ahead of the reader, by at most `size` items.

    The source is drawn on by a task, from the first read on. What it raises arrives after the items that came before.
    """
    whole("buffered", "size", size)
    return _Fed("buffered", [source], Lane(size))


def merge(*sources: AsyncIterable[T]) -> Stream[T]:
    """Read all the sources at once, each item as it comes; the stream ends when all of them have.

    Each source's own order is kept. A source that is faster than the reader gets no more than its turn. When one
    raises, the others are closed, and the exception arrives after the items that came before it.
    """
    if not sources:
        raise InvalidStream("merge(): give at least one async iterable")
    return _Fed("merge", sources, Lane(len(sources), sources=len(sources)))


def batch(source: AsyncIterable[T], size: int, max_wait: float | None = None) -> Stream[list[T]]:
    """Collect items into lists of `size`, in order; the last may be shorter.

    The source runs ahead of the reader, by at most a batch. What it raises arrives after the items that came before.

    Args:
        source: An async iterable.
        size: Items in a full batch.
        max_wait: Seconds for which an item is kept back at most while the reader waits: a batch goes, full or not, when so much
            time has passed since its first item came. Without it only the end of the source makes a batch go early.
    """
    whole("batch", "size", size)
    seconds("batch", "max_wait", max_wait)
    return _Batched(source, size, max_wait)


def tee(
    source: AsyncIterable[T],
    readers: int = 2,
    *,
    buffer: int = 16,
    drop_oldest: bool | Sequence[bool] = False,
) -> tuple[Branch[T], ...]:
    """Give one stream to many readers: each gets every item, in order, in its own time.

    The source waits for the slowest reader that doesn't drop, and is at most `buffer` items ahead of it. So two such branches must be
    read at the same time, by two tasks. A reader that leaves is waited for no longer; when the last has left, the source is
    closed. What the source raises reaches every reader.

    Args:
        source: An async iterable.
        readers: How many branches to return.
        buffer: Items that may lie ready for each reader.
        drop_oldest: Whether a reader that falls behind loses its oldest items instead of holding the others up; one answer for all
            readers, or one for each. `Branch.dropped` counts them. If all drop, the source is never held up.
    """
    whole("tee", "readers", readers)
    whole("tee", "buffer", buffer)
    drops = [drop_oldest] * readers if isinstance(drop_oldest, bool) else list(drop_oldest)
    if len(drops) != readers:
        raise InvalidStream(
            f"tee(): drop_oldest={drop_oldest!r} answers for {len(drops)} of {readers} readers; give one bool for each, or one for all"
        )
    lanes = [Lane[T](buffer, drop_oldest=drop) for drop in drops]
    trunk = _Trunk(iterator("tee", source), lanes)
    return tuple(Branch(trunk, lane) for lane in lanes)


def timeout(
    source: AsyncIterable[T], *, first: float | None = None, between: float | None = None
) -> Stream[T]:
    """Raise `StreamTimeout` when the source keeps its reader waiting; the source is closed then.

    Only time spent waiting counts: a reader may take as long as it likes over an item.

    Args:
        source: An async iterable.
        first: Seconds that may pass until the first item has come.
        between: Seconds that may pass until each further item, or the end, has come.
    """
    if first is None and between is None:
        raise InvalidStream("timeout(): give first=, between= or both, in seconds")
    seconds("timeout", "first", first)
    seconds("timeout", "between", between)
    return _Timed(source, first, between)


class _Mapped(Stream[R], Generic[T, R]):
    def __init__(self, source: AsyncIterable[T], fn: Callable[[T], Any]) -> None:
        if not callable(fn):
            raise InvalidStream(f"map(): fn={short(fn)}; give a function of one item")
        self._items = iterator("map", source)
        self._fn = fn
        self._is_async = is_coroutine_callable(fn)
        self._opened()

    async def _next(self) -> R:
        item = await anext(self._items)
        try:
            result = self._fn(item)
            return cast("R", await result if self._is_async else result)
        except StopAsyncIteration as error:
            # Else it would pass for the end of the stream.
            raise RuntimeError("map(): the function raised StopAsyncIteration") from error

    async def _close(self) -> None:
        await close(self._items)


class _Taken(Stream[T]):
    def __init__(self, source: AsyncIterable[T], count: int) -> None:
        if not isinstance(count, int) or isinstance(count, bool) or count < 0:
            raise InvalidStream(f"take(): count={count!r}; give a whole number, 0 or more")
        self._left = count
        super().__init__(source)

    async def _next(self) -> T:
        if self._left == 0:
            raise StopAsyncIteration
        item = await anext(self._source)
        self._left -= 1
        if self._left == 0:
            await self.aclose()
        return item


class _Chained(Stream[T]):
    def __init__(self, sources: Sequence[AsyncIterable[T]]) -> None:
        self._sources = [iterator("chain", source) for source in sources]
        self._opened()

    async def _next(self) -> T:
        while self._sources:
            try:
                return await anext(self._sources[0])
            except StopAsyncIteration:
                await close(self._sources.pop(0))
        raise StopAsyncIteration

    async def _close(self) -> None:
        raise_first([await close_quietly(source) for source in self._sources])


class _Timed(Stream[T]):
    def __init__(
        self, source: AsyncIterable[T], first: float | None, between: float | None
    ) -> None:
        self._limit, self._between = first, between
        self._count = 0
        super().__init__(source)

    async def _next(self) -> T:
        deadline = asyncio.timeout(self._limit)
        try:
            async with deadline:
                item = await anext(self._source)
        except TimeoutError:
            if not deadline.expired():
                raise  # the source's own
            awaited = "the first item" if self._count == 0 else f"an item after item {self._count}"
            raise StreamTimeout(
                f"the stream was waited for {self._limit} s, and {awaited} did not come"
            ) from None
        self._count += 1
        self._limit = self._between
        return item


class _Fed(Stream[T]):
    """Reads a lane that pumps fill."""

    def __init__(
        self, operator: str, sources: Sequence[AsyncIterable[Any]], lane: Lane[Any]
    ) -> None:
        self._lane = lane
        self._pumps = Pumps([iterator(operator, source) for source in sources], lane)
        self._opened()

    async def _next(self) -> T:
        self._pumps.start()
        return cast("T", await self._lane.get())

    async def _close(self) -> None:
        self._lane.close()
        await self._pumps.stop()


class _Batched(_Fed[list[T]]):
    def __init__(self, source: AsyncIterable[T], size: int, max_wait: float | None) -> None:
        self._size, self._max_wait = size, max_wait
        super().__init__("batch", [source], Lane(size, timed=max_wait is not None))

    async def _next(self) -> list[T]:
        self._pumps.start()
        return await self._lane.get_all(self._size, self._max_wait)


class _Trunk(Generic[T]):
    """What the branches of one `tee` share; it holds none of them."""

    def __init__(self, source: AsyncIterator[T], lanes: Sequence[Lane[T]]) -> None:
        self._lanes = lanes
        self.pumps = Pumps([source], Fork(lanes))

    async def left(self, lane: Lane[T]) -> None:
        """A reader has left."""
        lane.close()
        if all(each.closed for each in self._lanes):
            await self.pumps.stop()


class Branch(Stream[T]):
    """One reader's side of a `tee`."""

    def __init__(self, trunk: _Trunk[T], lane: Lane[T]) -> None:
        self._trunk = trunk
        self._lane = lane
        self._opened()

    @property
    def dropped(self) -> int:
        """How many items this reader has lost because it fell behind."""
        return self._lane.dropped

    async def _next(self) -> T:
        self._trunk.pumps.start()
        return await self._lane.get()

    async def _close(self) -> None:
        await self._trunk.left(self._lane)


_closing: set[asyncio.Task[None]] = set()  # the loop itself holds tasks weakly


def _close_later(stream: Stream[Any]) -> None:
    task = asyncio.get_running_loop().create_task(stream.aclose())
    _closing.add(task)
    task.add_done_callback(_closing.discard)
