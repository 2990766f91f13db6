"""The source's side of a run: inputs enter the first channel as fast as there is room, and no faster.

Sized builtin sequences are read on the loop. Any other iterable, and any source with a ledger or a fingerprint (which touches
files), is advanced on a thread of the run in short batches. Async iterables are advanced on the loop.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from time import perf_counter
from typing import TYPE_CHECKING, Any

from tournant.engine import crew
from tournant.engine.lineage import Input, Item
from tournant.engine.puller import Entry, Puller
from tournant.errors import SourceFailed
from tournant.pool.steps import plain
from tournant.sizes import size_of

if TYPE_CHECKING:
    from tournant.engine.channel import Channel
    from tournant.engine.run import Run

#: Inputs that the source's thread may run ahead; more of them make the ledger's look-ups cheaper.
_AHEAD = 64
_AHEAD_WITH_LEDGER = 256
#: The share of a memory limit that may be pulled ahead is one over this.
_AHEAD_SHARE = 8
#: Common types that name nothing: asking each value whether it is a path would cost more than the rest of its way in.
_UNNAMED = frozenset({int, float, bytes, tuple, list, dict, bool, type(None)})
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


def default_key(value: Any, position: int) -> Any:
    """Return what names an input unless the pipeline has a ``key``: itself if it is text or a path, else its position."""
    if type(value) in _UNNAMED:
        return position
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
        unused: inputs that the source gave and a run that was stopped did not take in.
        waiting: it waits for room, for the window or for memory.
    """

    def __init__(self, run: Run, inbox: Channel) -> None:
        self.run = run
        self.inbox = inbox
        self.sourced = 0
        self.admitted = 0
        self.unused = 0
        self.stopped = False
        self.waiting = False
        self.done = False
        self.wait_output = 0.0
        self._window: asyncio.Future[None] | None = None
        self._pulling: asyncio.Task[Any] | None = None
        self._puller: Puller | None = None

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
            if self.stopped:
                pass
            elif run.source_is_async:
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
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            run.source_failed(plain(error))
        finally:
            self.done = True
            self.inbox.close()
            run.segment_done()

    async def discard(self) -> None:
        """Where there are no stages: every input arrives as it is."""
        inbox = self.inbox
        while True:
            while inbox.items:
                self.run.arrive(inbox.items.popleft())
            if inbox.closed:
                return
            await inbox.wait_items()

    async def _feed_list(self, values: Any) -> None:
        """The fast path: nothing between the sequence and the channel but room, window and key."""
        run, inbox = self.run, self.inbox
        items, key_of = inbox.items, run.pipeline.key
        barrier, fingerprint_of = run.first_barrier, run.pipeline.fingerprint
        plain = run.budget is None
        ordered = bool(run.ordered)
        record, taken = run.events.on, run.events.inputs
        if record:
            taken.taking(self.admitted)
        for position, value in enumerate(values):
            if self.stopped:
                return
            if len(items) >= inbox.capacity or (ordered and not self._within_window()) or not plain:
                await self._enter(value)
                if self.stopped:
                    return
                if record:
                    taken.taking(self.admitted)
            if key_of is not None:
                key = _keyed(key_of, value)
            elif type(value) is str:
                key = value
            else:
                key = default_key(value, position)
            fingerprint = fingerprint_of(value) if fingerprint_of is not None else None
            origin = Input(key, self.admitted, barrier, fingerprint)
            item = Item(value, origin)
            if record and key is not position:
                taken.name(self.admitted, key)
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
        run = self.run
        budget = run.budget
        puller = self._puller = Puller(
            run.loop,
            run.source_iterable,
            self._name,
            ahead=_AHEAD if run.books is None else _AHEAD_WITH_LEDGER,
            weigh=size_of if budget is not None else None,
            most_bytes=budget.limit // _AHEAD_SHARE if budget is not None else 0,
            context=run.context.copy(),
        )
        try:
            while not self.stopped:
                entries = await puller.take()
                if not entries:
                    break
                if run.books is not None:
                    await self._put_new(entries)
                else:
                    for entry in entries:
                        await self._put(entry)
                        if self.stopped:
                            break
                self.inbox.added()
        finally:
            await puller.close()
            # What was pulled and did not get in is lost to a source that can't be asked again: say how much it was.
            self.unused = puller.pulled - puller.put
            self.sourced += self.unused
            if puller.problem is not None:
                run.warnings.append(f"closing the source raised {puller.problem!r}")

    def _name(self, value: Any, position: int) -> tuple[Any, Any]:
        """Return key and fingerprint of an input; on whichever thread the source is advanced."""
        pipeline = self.run.pipeline
        key = default_key(value, position) if pipeline.key is None else _keyed(pipeline.key, value)
        return key, pipeline.fingerprint(value) if pipeline.fingerprint is not None else None

    async def _put_new(self, batch: list[Entry]) -> None:
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
                if run.events.on:
                    run.events.inputs.skip(self.admitted, entry[1])
                self._was_put()
                continue
            await books.room()
            if not self.admitted:
                crew.prestart(run)
            await self._put(entry)

    async def _put(self, entry: Entry) -> None:
        value, key, fingerprint = entry
        run, inbox = self.run, self.inbox
        if len(inbox.items) >= inbox.capacity or run.ordered or run.budget is not None:
            await self._enter(value)
            if self.stopped:
                return
        item = Item(value, Input(key, self.admitted, run.first_barrier, fingerprint))
        if run.events.on:
            run.events.inputs.taking(self.admitted)
            run.events.inputs.name(self.admitted, key)
        if run.budget is not None:
            run.enter(item)
        self.sourced += 1
        self.admitted += 1
        self._was_put()
        inbox.items.append(item)
        inbox.added()

    def _was_put(self) -> None:
        if self._puller is not None:
            self._puller.was_put()

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
                await run.budget.input(size_of(value))
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
