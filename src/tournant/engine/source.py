"""The source's side of a run: inputs enter the first channel as fast as there is room, and no faster.

Sized builtin sequences are read on the loop. Any other iterable, and any source with a ledger or a fingerprint (which touches
files), is advanced on a thread of the run in short batches. Async iterables are advanced on the loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from time import perf_counter
from typing import TYPE_CHECKING, Any

from tournant.engine.lineage import Input, Item
from tournant.errors import SourceFailed

if TYPE_CHECKING:
    from tournant.engine.channel import Channel
    from tournant.engine.run import Run

#: Seconds and items after which a batch from the source's thread is handed over.
_BATCH_SECONDS = 0.002
_BATCH_ITEMS = 512
_READ_ON_LOOP: tuple[type, ...] = (
    list,
    tuple,
    range,
    dict,
    set,
    frozenset,
    type({}.keys()),
    type({}.values()),
    type({}.items()),
)

_Entry = tuple[Any, Any, Any]


def default_key(value: Any, position: int) -> Any:
    """Return what names an input unless the pipeline has a ``key``: itself if it is text or a path, else its position."""
    if isinstance(value, str):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return position


class Source:
    """Feeds one run.

    Attributes:
        sourced: inputs taken, those skipped by the ledger included.
        admitted: inputs that entered the first channel; the next one's index.
        waiting: it waits for room, for the window or for memory.
    """

    def __init__(self, run: Run, inbox: Channel) -> None:
        self.run = run
        self.inbox = inbox
        self.sourced = 0
        self.admitted = 0
        self.stopped = False
        self.waiting = False
        self.done = False
        self.wait_output = 0.0
        self._window: asyncio.Future[None] | None = None
        self._pulling: asyncio.Task[Any] | None = None
        self._puller: _Puller | None = None

    def stop(self) -> None:
        """Take no more inputs."""
        self.stopped = True
        if self._pulling is not None:
            # It may wait for ever for a next item that nobody wants.
            self._pulling.cancel()
        if self._puller is not None:
            self._puller.stop()
        self.window_moved()

    def window_moved(self) -> None:
        """Look again whether the window lets an input in."""
        if self._window is not None and not self._window.done():
            self._window.set_result(None)

    async def feed(self) -> None:
        """Put every input into the first channel."""
        run = self.run
        try:
            if run.pipeline.is_async_source:
                await self._feed_async()
            elif run.books is None and (
                run.inline
                or (
                    isinstance(run.source_iterable, _READ_ON_LOOP)
                    and run.pipeline.fingerprint is None
                )
            ):
                await self._feed_list(run.source_iterable)
            else:
                await self._feed_thread()
        except Exception as error:
            run.source_failed(error)
        finally:
            self.done = True
            self.inbox.close()
            run.segment_done()

    async def _feed_list(self, values: Any) -> None:
        """The fast path: nothing between the sequence and the channel but room, window and key."""
        run, inbox = self.run, self.inbox
        items, key_of = inbox.items, run.pipeline.key
        barrier, fingerprint_of = run.first_barrier, run.pipeline.fingerprint
        plain = run.budget is None
        ordered = bool(run.ordered)
        for position, value in enumerate(values):
            if self.stopped:
                return
            if len(items) >= inbox.capacity or (ordered and not self._within_window()) or not plain:
                await self._enter(value)
                if self.stopped:
                    return
            if key_of is not None:
                key = _keyed(key_of, value)
            elif type(value) is str:
                key = value
            else:
                key = default_key(value, position)
            fingerprint = fingerprint_of(value) if fingerprint_of is not None else None
            origin = Input(key, self.admitted, barrier, fingerprint)
            item = Item(value, origin)
            if not plain:
                run.enter(item)
            self.sourced += 1
            self.admitted += 1
            items.append(item)
        inbox.added()

    async def _feed_async(self) -> None:
        run = self.run
        iterator = aiter(run.source_iterable)
        position = 0
        try:
            while not self.stopped:
                self._pulling = asyncio.current_task()
                try:
                    value = await anext(iterator)
                except StopAsyncIteration:
                    break
                except asyncio.CancelledError:
                    if self.stopped and self._pulling is not None:
                        self._pulling.uncancel()
                        break
                    raise
                finally:
                    self._pulling = None
                entry = (value, *self._name(value, position))
                position += 1
                if run.books is not None:
                    await self._put_new([entry])
                else:
                    await self._put(entry)
        finally:
            close = getattr(iterator, "aclose", None)
            if close is not None:
                await close()

    async def _feed_thread(self) -> None:
        puller = self._puller = _Puller(self.run.loop, self.run.source_iterable, self._name)
        try:
            async with contextlib.aclosing(puller.batches()) as batches:
                async for batch in batches:
                    if self.run.books is not None:
                        await self._put_new(batch)
                    else:
                        for entry in batch:
                            await self._put(entry)
                            if self.stopped:
                                break
                    if self.stopped:
                        break
                    self.inbox.added()
        finally:
            puller.close()

    def _name(self, value: Any, position: int) -> tuple[Any, Any]:
        """Return key and fingerprint of an input; on whichever thread the source is advanced."""
        pipeline = self.run.pipeline
        key = default_key(value, position) if pipeline.key is None else _keyed(pipeline.key, value)
        return key, pipeline.fingerprint(value) if pipeline.fingerprint is not None else None

    async def _put_new(self, batch: list[_Entry]) -> None:
        """Put in what the ledger doesn't know as done and unchanged."""
        run = self.run
        books = run.books
        assert books is not None
        keys = [entry[1] for entry in batch]
        prints = [entry[2] for entry in batch]
        wanted = await books.pending(keys, prints)
        for entry, needed in zip(batch, wanted, strict=True):
            if self.stopped:
                return
            if not needed:
                self.sourced += 1
                run.skipped += 1
                continue
            await books.room()
            if not self.admitted:
                run.prestart()
            await self._put(entry)

    async def _put(self, entry: _Entry) -> None:
        value, key, fingerprint = entry
        run, inbox = self.run, self.inbox
        if len(inbox.items) >= inbox.capacity or run.ordered or run.budget is not None:
            await self._enter(value)
            if self.stopped:
                return
        item = Item(value, Input(key, self.admitted, run.first_barrier, fingerprint))
        if run.budget is not None:
            run.enter(item)
        self.sourced += 1
        self.admitted += 1
        inbox.items.append(item)
        inbox.added()

    def _within_window(self) -> bool:
        return all(self.admitted - barrier.head < barrier.window for barrier in self.run.ordered)

    async def _enter(self, value: Any) -> None:
        """Wait for room in the channel, in the window and in memory."""
        run, inbox = self.run, self.inbox
        inbox.added()
        began = perf_counter()
        self.waiting = True
        try:
            if len(inbox.items) >= inbox.capacity:
                await inbox.wait_room()
            while not self.stopped and not self._within_window():
                self._window = run.loop.create_future()
                await self._window
            if run.budget is not None and not self.stopped:
                await run.budget.admitted(run.size_of(value))
        finally:
            self.waiting = False
            self.wait_output += perf_counter() - began


def _keyed(key_of: Callable[[Any], Any], value: Any) -> Any:
    try:
        return key_of(value)
    except Exception as error:
        raise SourceFailed(
            f"key= raised {type(error).__name__} for the input {value!r:.80}: {error}"
        ) from error


class _Puller:
    """Advances an iterable on a thread of its own, so that it may block."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        iterable: Any,
        name: Callable[[Any, int], tuple[Any, Any]],
    ) -> None:
        self._loop = loop
        self._iterable = iterable
        self._name = name
        self._orders: queue.SimpleQueue[asyncio.Future[tuple[list[_Entry], bool]] | None] = (
            queue.SimpleQueue()
        )
        self._awaited: asyncio.Future[tuple[list[_Entry], bool]] | None = None
        self._thread = threading.Thread(target=self._work, name="tournant-source", daemon=True)
        self._thread.start()

    async def batches(self) -> AsyncGenerator[list[_Entry], None]:
        """Yield batches until the iterable is exhausted."""
        more = True
        order = self._order()
        while more:
            self._awaited = order
            batch, more = await order
            if more:
                # The next batch is pulled while this one is put in.
                order = self._order()
            yield batch

    def stop(self) -> None:
        """Wait no longer for a batch that may never come."""
        if self._awaited is not None and not self._awaited.done():
            self._awaited.set_result(([], False))

    def close(self) -> None:
        """Have the thread close the iterable and end."""
        self._orders.put(None)

    def _order(self) -> asyncio.Future[tuple[list[_Entry], bool]]:
        order: asyncio.Future[tuple[list[_Entry], bool]] = self._loop.create_future()
        # Whoever stops early leaves an order behind; its error is nobody's business then.
        order.add_done_callback(lambda f: None if f.cancelled() else f.exception())
        self._orders.put(order)
        return order

    def _work(self) -> None:
        iterator: Iterator[Any] | None = None
        position = 0
        try:
            while True:
                order = self._orders.get()
                if order is None:
                    return
                batch: list[_Entry] = []
                more = True
                try:
                    if iterator is None:
                        iterator = iter(self._iterable)
                    due = perf_counter() + _BATCH_SECONDS
                    while len(batch) < _BATCH_ITEMS:
                        try:
                            value = next(iterator)
                        except StopIteration:
                            more = False
                            break
                        batch.append((value, *self._name(value, position)))
                        position += 1
                        if perf_counter() > due:
                            break
                except Exception as error:
                    # What was pulled before the error goes in all the same.
                    if batch:
                        self._answer(order, (batch, True), None)
                        order = self._orders.get()
                        if order is None:
                            return
                    self._answer(order, None, error)
                    continue
                self._answer(order, (batch, more), None)
        finally:
            close = getattr(iterator, "close", None)
            if close is not None:
                close()

    def _answer(
        self,
        order: asyncio.Future[tuple[list[_Entry], bool]],
        result: tuple[list[_Entry], bool] | None,
        error: Exception | None,
    ) -> None:
        def answer() -> None:
            if order.done():
                return
            if error is not None:
                order.set_exception(error)
            elif result is not None:
                order.set_result(result)

        # A loop that is closed has nobody left who ordered.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(answer)
