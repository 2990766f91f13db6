"""The bounded buffer between two segments of a run. One loop, no locks.

`items` is a plain deque, open to the segments on both sides: the hot paths pop and append directly and call a method only
where somebody has to be woken. Waking is one at a time: a worker that is woken and finds more wakes the next. So a
burst that one worker can swallow costs one wake-up, not one per item.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

from tournant.engine.lineage import Item


class Attempt:
    """Work that comes back to a segment: an item, or the rows of a batch, with what was tried already.

    Attributes:
        item: the item; ``None`` for a batch.
        rows: the items of a batch.
        step: the step to begin with.
        count: attempts made.
        skip: children that an earlier attempt passed on.
        deaths: worker processes that died of it.
        final: no retry follows (a halved batch).
    """

    __slots__ = ("count", "deaths", "final", "item", "rows", "skip", "step", "value")

    def __init__(
        self,
        item: Item | None,
        rows: list[Item] | None = None,
        *,
        value: Any = None,
        step: int = 0,
        count: int = 0,
        skip: int = 0,
        deaths: int = 0,
        final: bool = False,
    ) -> None:
        self.item = item
        self.rows = rows
        self.value = value
        self.step = step
        self.count = count
        self.skip = skip
        self.deaths = deaths
        self.final = final


class Channel:
    """A bounded queue of items with a second lane for attempts that come back.

    Attributes:
        items: what is queued, oldest first.
        again: attempts that are due now; they go first and know no bound.
        capacity: items beyond which a producer waits. It may be overshot by one worker's results.
        low: producers that wait are woken when no more than this many are left, so that they come back for many.
        closed: no more items will come.
        writers: producers that wait for room.
        threshold: how many items a reader waits for.
        on_items: called instead of waking a reader, where the consumer is no coroutine.
        on_short: called when items come and no reader waits, as long as there may be more readers.
        on_room: called once there is room again after `room_wanted` was set, where the producer is no coroutine.
        waited_room: seconds that producers have waited for room.
    """

    __slots__ = (
        "_loop", "_readers", "_waking", "again", "capacity", "closed", "items", "low", "on_items", "on_room", "on_short",
        "room_wanted", "threshold", "waited_room", "writers",
    )  # fmt: skip

    def __init__(self, loop: asyncio.AbstractEventLoop, capacity: int) -> None:
        self._loop = loop
        self.items: deque[Item] = deque()
        self.again: deque[Attempt] = deque()
        self.set_capacity(capacity)
        self.closed = False
        self.threshold = 1
        self._readers: deque[asyncio.Future[None]] = deque()
        self.writers: deque[asyncio.Future[None]] = deque()
        self._waking = False
        self.on_items: Callable[[], None] | None = None
        self.on_short: Callable[[], None] | None = None
        self.on_room: Callable[[], None] | None = None
        self.room_wanted = False
        self.waited_room = 0.0

    def set_capacity(self, capacity: int) -> None:
        """Change the bound; what is queued stays."""
        self.capacity = capacity
        self.low = capacity // 2

    def full(self) -> bool:
        """Tell whether a producer should wait."""
        return len(self.items) >= self.capacity

    def added(self) -> None:
        """Wake a reader, after items were appended."""
        if self.on_items is not None:
            self.on_items()
        elif self._readers:
            if not self._waking and (len(self.items) >= self.threshold or self.again):
                self._wake_reader()
        elif self.on_short is not None and not self._waking:
            self.on_short()

    def _wake_reader(self) -> None:
        while self._readers:
            reader = self._readers.pop()
            if not reader.done():
                self._waking = True
                reader.set_result(None)
                return

    def removed(self) -> None:
        """Wake a producer if enough was taken. Hot paths ask ``writers or room_wanted`` before they call."""
        if len(self.items) <= self.low:
            if self.room_wanted and self.on_room is not None:
                self.room_wanted = False
                self.on_room()
            if self.writers:
                self._wake_writer()

    def _wake_writer(self) -> None:
        while self.writers:
            writer = self.writers.popleft()
            if not writer.done():
                writer.set_result(None)
                return

    @property
    def readers_idle(self) -> bool:
        """Whether a reader waits, or has been woken and has not looked yet."""
        return bool(self._readers) or self._waking

    def pass_on(self) -> None:
        """Wake the next reader if there is more than the caller has taken."""
        if self._readers and not self._waking and (len(self.items) >= self.threshold or self.again):
            self._wake_reader()

    async def wait_items(self, timeout: float | None = None) -> None:
        """Wait until something may be there, the channel is closed, or `timeout` seconds have passed."""
        reader = self._loop.create_future()
        self._readers.append(reader)
        timer = self._loop.call_later(timeout, _resolve, reader) if timeout is not None else None
        try:
            await reader
        finally:
            self._waking = False
            if timer is not None:
                timer.cancel()
                if reader in self._readers:
                    self._readers.remove(reader)

    async def wait_room(self) -> None:
        """Wait until there is room or the channel is closed."""
        began = self._loop.time()
        while len(self.items) >= self.capacity and not self.closed:
            writer = self._loop.create_future()
            self.writers.append(writer)
            await writer
        self.waited_room += self._loop.time() - began
        if self.writers and len(self.items) < self.capacity:
            self._wake_writer()

    def close(self) -> None:
        """Say that no more items will come, and wake everybody."""
        self.closed = True
        self._waking = False
        for waiter in (*self._readers, *self.writers):
            if not waiter.done():
                waiter.set_result(None)
        self._readers.clear()
        self.writers.clear()
        if self.on_items is not None:
            self.on_items()

    def clear(self) -> None:
        """Drop everything queued: the run has been stopped."""
        self.items.clear()
        self.again.clear()


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
