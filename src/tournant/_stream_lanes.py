"""What moves items between tasks for `tournant.streams`: bounded lanes, and the pump that fills them.

Internal. A lane has one reader and one or more writers; a pump is a task that draws on one source and closes it. Neither
holds on to the stream that reads it, so a stream nobody refers to any more can be collected and its pumps ended.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from typing import Any, Generic, Protocol, TypeVar

T = TypeVar("T")
T_contra = TypeVar("T_contra", contravariant=True)


class Outlet(Protocol[T_contra]):
    """Where a pump puts what it draws."""

    async def room(self) -> None:
        """Wait until one more item may come, and keep its place free."""

    def put(self, item: T_contra) -> None:
        """Take the item that `room` was waited for."""

    def end(self, error: BaseException | None) -> None:
        """A source has ended, by itself or with an error; it gives back the place that was kept for it."""


class Lane(Generic[T]):
    """A bounded buffer with one reader.

    Args:
        capacity: Items that may lie here, those on their way included.
        sources: How many pumps write here; the lane ends when all of them have.
        drop_oldest: Never make a writer wait: let the oldest item go instead, and count it.
        timed: Note when the oldest item came, for `get_all`.

    Attributes:
        dropped: Items that were let go.
        closed: The reader has left.
    """

    __slots__ = (
        "_capacity",
        "_drop_oldest",
        "_error",
        "_items",
        "_reader",
        "_reserved",
        "_since",
        "_sources",
        "_threshold",
        "_timed",
        "_writers",
        "closed",
        "dropped",
    )

    def __init__(
        self, capacity: int, *, sources: int = 1, drop_oldest: bool = False, timed: bool = False
    ) -> None:
        self._capacity = capacity
        self._sources = sources
        self._drop_oldest = drop_oldest
        self._timed = timed
        self._items: deque[T] = deque()
        self._reserved = 0
        self._writers: deque[asyncio.Future[None]] = deque()
        self._reader: asyncio.Future[None] | None = None
        self._threshold = 1
        self._since = 0.0
        self._error: BaseException | None = None
        self.closed = False
        self.dropped = 0

    # The writers' side.

    async def room(self) -> None:
        """Wait until one more item may come, and keep its place free. Writers are served in turn."""
        if self.closed or self._drop_oldest:
            return
        if not self._writers and len(self._items) + self._reserved < self._capacity:
            self._reserved += 1
            return
        waiter = asyncio.get_running_loop().create_future()
        self._writers.append(waiter)
        try:
            await waiter  # whoever wakes us has reserved the place
        except BaseException:
            if waiter.done() and not waiter.cancelled():
                self._reserved -= 1
                self._wake_writers()
            raise

    def put(self, item: T) -> None:
        """Take the item that `room` was waited for."""
        if self.closed:
            return
        if self._drop_oldest:
            if len(self._items) >= self._capacity:
                self._items.popleft()
                self.dropped += 1
        else:
            self._reserved -= 1
        if self._timed and not self._items:
            self._since = asyncio.get_running_loop().time()
        self._items.append(item)
        if self._reader is not None and len(self._items) >= self._threshold:
            self._wake_reader()

    def end(self, error: BaseException | None) -> None:
        """One source has ended; after an error the reader is told once it has read what came before."""
        if self._sources:  # none counts any more after an error
            self._sources -= 1
            if error is not None:
                self._sources = 0
                self._error = error
        if self._reserved:
            self._reserved -= 1
            self._wake_writers()
        self._wake_reader()

    # The reader's side.

    async def get(self) -> T:
        """Wait for the next item.

        Raises:
            StopAsyncIteration: All sources have ended, or the lane was closed.
        """
        while not self._items:
            self._check_end()
            await self._wait()
        item = self._items.popleft()
        if self._writers:
            self._wake_writers()
        return item

    async def get_all(self, size: int, max_wait: float | None) -> list[T]:
        """Wait until `size` items are here, the oldest has been here for `max_wait` seconds, or no more come; take all.

        Raises:
            StopAsyncIteration: All sources have ended, or the lane was closed.
        """
        loop = asyncio.get_running_loop()
        while len(self._items) < size and self._sources and not self.closed:
            if not self._items or max_wait is None:
                await self._wait(size if max_wait is None else 1)
                continue
            due = self._since + max_wait
            if loop.time() >= due:
                break
            timer = loop.call_at(due, self._wake_reader)
            try:
                await self._wait(size)
            finally:
                timer.cancel()
        if not self._items:
            self._check_end()
        taken = list(self._items)
        self._items.clear()
        self._wake_writers()
        return taken

    def close(self) -> None:
        """The reader has left: nobody waits for it any more."""
        self.closed = True
        self._items.clear()
        for waiter in self._writers:
            if not waiter.done():
                self._reserved += 1
                waiter.set_result(None)
        self._writers.clear()
        self._wake_reader()

    def _check_end(self) -> None:
        if self.closed or not self._sources:
            error, self._error = self._error, None
            if error is not None and not self.closed:
                raise error
            raise StopAsyncIteration

    async def _wait(self, threshold: int = 1) -> None:
        self._threshold = threshold
        self._reader = asyncio.get_running_loop().create_future()
        try:
            await self._reader
        finally:
            self._reader = None

    def _wake_reader(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    def _wake_writers(self) -> None:
        while self._writers and len(self._items) + self._reserved < self._capacity:
            waiter = self._writers.popleft()
            if not waiter.done():
                self._reserved += 1
                waiter.set_result(None)


class Fork(Generic[T]):
    """One outlet onto many lanes: every lane gets every item, and the fullest decides when the next may come."""

    __slots__ = ("_lanes",)

    def __init__(self, lanes: Sequence[Lane[T]]) -> None:
        self._lanes = lanes

    async def room(self) -> None:
        """Wait until every lane whose reader is still there has room."""
        for lane in self._lanes:
            await lane.room()

    def put(self, item: T) -> None:
        """Give the item to every lane."""
        for lane in self._lanes:
            lane.put(item)

    def end(self, error: BaseException | None) -> None:
        """Tell every lane."""
        for lane in self._lanes:
            lane.end(error)


async def close(source: AsyncIterator[Any]) -> None:
    """Close an iterator that can be closed."""
    aclose = getattr(source, "aclose", None)
    if aclose is not None:
        await aclose()


class Pump(Generic[T]):
    """A task that draws on one source.

    Attributes:
        closing: The source has ended or was given up, and is being closed.
    """

    __slots__ = ("_cancelled", "_outlet", "_source", "_task", "closing")

    def __init__(self, source: AsyncIterator[T], outlet: Outlet[T]) -> None:
        self._source = source
        self._outlet = outlet
        self.closing = False
        self._cancelled = False
        self._task = asyncio.get_running_loop().create_task(self._run())

    def cancel(self) -> None:
        """Have the source closed, unless that is under way."""
        if not self.closing:
            self._cancelled = True
            self._task.cancel()

    async def ended(self) -> BaseException | None:
        """Wait until the source is closed; return what closing raised."""
        await asyncio.wait([self._task])
        if self._task.cancelled():  # before its first step, so that it never saw its source
            return await close_quietly(self._source)
        return self._task.exception() or self._task.result()

    async def _run(self) -> BaseException | None:
        source, outlet = self._source, self._outlet
        error: BaseException | None = None
        try:
            while True:
                await outlet.room()
                outlet.put(await anext(source))
        except StopAsyncIteration:
            pass
        except BaseException as caught:
            error = caught
        self.closing = True
        failure = await close_quietly(source)
        if self._cancelled and not isinstance(error, asyncio.CancelledError):
            failure = (
                failure or error
            )  # what a source raises that is cancelled, it raises in closing itself
        if failure is not None and error is not None and failure is not error:
            failure.__context__ = failure.__context__ or error
        error = failure or error
        outlet.end(error)
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise error
        return failure


class Pumps(Generic[T]):
    """The pumps of one lane or fork, started together and ended together.

    Args:
        sources: What to draw on; each is closed however its pump ends.
        outlet: Where their items go.
    """

    __slots__ = ("_outlet", "_pumps", "_sources")

    def __init__(self, sources: Sequence[AsyncIterator[T]], outlet: Outlet[T]) -> None:
        self._sources: Sequence[AsyncIterator[T]] | None = sources
        self._outlet = outlet
        self._pumps: list[Pump[T]] = []

    def start(self) -> None:
        """Start them on the running loop, unless they have been."""
        if self._sources is not None:
            sources, self._sources = self._sources, None
            self._pumps = [Pump(source, self._outlet) for source in sources]

    async def stop(self) -> None:
        """End every pump and wait until it has closed its source; raise what closing raised first."""
        unopened, self._sources = self._sources or (), None
        pumps, self._pumps = self._pumps, []
        for pump in pumps:
            pump.cancel()
        failures = [await pump.ended() for pump in pumps]
        raise_first(failures + [await close_quietly(source) for source in unopened])


async def close_quietly(source: AsyncIterator[Any]) -> BaseException | None:
    """Close an iterator and return what that raised."""
    try:
        await close(source)
    except BaseException as failure:
        return failure
    return None


def raise_first(failures: Sequence[BaseException | None]) -> None:
    """Raise the first failure, if there is one."""
    for failure in failures:
        if failure is not None:
            raise failure
