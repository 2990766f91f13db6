"""The run's memory limit: how many bytes are queued and in flight, and who waits for room among them.

New items, from the source or from a fan-out, ask before they enter.
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tournant.errors import InvalidPipeline
from tournant.sizes import size_of

if TYPE_CHECKING:
    from tournant.engine.lineage import Batch, Input

__all__ = ["Budget", "parse_bytes", "size_of"]

_UNITS = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


def parse_bytes(limit: int | str) -> int:
    """Return a memory limit in bytes; ``"512MiB"``, ``"2 GB"`` or a number of bytes.

    Raises:
        InvalidPipeline: it is neither.
    """
    if isinstance(limit, int) and not isinstance(limit, bool) and limit > 0:
        return limit
    if isinstance(limit, str):
        text = limit.strip().lower().replace("_", "")
        digits = text.rstrip("abcdefghijklmnopqrstuvwxyz ")
        unit = text[len(digits) :].strip() or "b"
        try:
            size = int(float(digits) * _UNITS[unit])
        except (ValueError, KeyError):
            size = 0
        if size > 0:
            return size
    raise InvalidPipeline(
        f'memory_limit={limit!r}: give bytes as a whole number above 0, or text such as "512MiB"'
    )


class Budget:
    """Bytes queued and in flight in one run.

    Results of a fan-out may fill the limit; inputs no more than half of it, so that what becomes of them has room. A single
    item always passes when nothing else is there. When nothing moves any more because everybody waits, `favour` opens the
    way for some descendants of one input.

    Attributes:
        limit: what `total` is to stay below.
        total: estimated bytes of all live items.
        peak: the highest `total`.
        favoured: the input (or batch) of whose descendants the next `grace` pass in any case.
    """

    __slots__ = (
        "_children",
        "_input",
        "_loop",
        "favoured",
        "grace",
        "limit",
        "on_room",
        "on_wait",
        "peak",
        "total",
    )

    def __init__(self, limit: int, loop: asyncio.AbstractEventLoop) -> None:
        self.limit = limit
        self.total = 0
        self.peak = 0
        self.favoured: Input | Batch | None = None
        self.grace = 0
        self._loop = loop
        self._children: deque[tuple[asyncio.Future[None], int, Input | Batch]] = deque()
        self._input: asyncio.Future[bool] | None = None
        self.on_room: Callable[[], None] | None = None
        self.on_wait: Callable[[], None] | None = None

    def admits(self, size: int, origin: Input | Batch | None = None) -> bool:
        """Tell whether a result of `size` bytes that descends from `origin` may enter."""
        return (
            not self.total
            or self.total + size <= self.limit
            or (origin is not None and origin is self.favoured and self.grace > 0)
        )

    def passes(self, size: int, origin: Input | Batch) -> bool:
        """Tell whether a result may enter, and use up its input's grace if that is why."""
        if self.admits(size):
            return True
        if origin is self.favoured and self.grace > 0:
            self.grace -= 1
            return True
        return False

    def add(self, size: int) -> None:
        """Count bytes that have entered (or left, when negative)."""
        self.total += size
        if self.total > self.peak:
            self.peak = self.total
        elif size < 0:
            self._changed()

    def _changed(self) -> None:
        """Let who waits look again: results first, for they are closer to the sink."""
        if self._children:
            waiter, size, origin = self._children[0]
            if not waiter.done() and self.admits(size, origin):
                waiter.set_result(None)
        elif self._input is not None and not self._input.done():
            self._input.set_result(False)
        if self.on_room is not None:
            self.on_room()

    async def room(self, size: int, origin: Input | Batch) -> None:
        """Wait until `size` bytes may enter; whoever waited asks `passes` then."""
        while not self.admits(size, origin):
            await self._turn(size, origin, self._children.append)
        if self._children:
            self._loop.call_soon(self._changed)

    async def child(self, size: int, origin: Input | Batch) -> None:
        """Wait until a result of `size` bytes may enter."""
        queue = self._children.append
        while not self.passes(size, origin):
            await self._turn(size, origin, queue)
            # Who was first stays first if somebody else was quicker.
            queue = self._children.appendleft
        if self._children:
            self._loop.call_soon(self._changed)

    async def _turn(self, size: int, origin: Input | Batch, queue: Callable[[Any], None]) -> None:
        waiter: asyncio.Future[None] = self._loop.create_future()
        entry = (waiter, size, origin)
        queue(entry)
        self._waits()
        try:
            await waiter
        finally:
            if entry in self._children:
                self._children.remove(entry)

    async def input(self, size: int) -> None:
        """Wait until an input of `size` bytes may enter."""
        forced = False
        while self.total and not forced and (self._children or self.total + size > self.limit // 2):
            self._input = self._loop.create_future()
            self._waits()
            try:
                forced = await self._input
            finally:
                self._input = None

    def _waits(self) -> None:
        if self.on_wait is not None:
            self.on_wait()

    @property
    def waiting(self) -> bool:
        """Whether anybody waits."""
        return self._input is not None or bool(self._children)

    def favour(self, grace: int) -> bool:
        """Open the way for the input whose result has waited longest; False when no result waits."""
        waiting = [entry for entry in self._children if not entry[0].done()]
        if not waiting:
            return False
        # Whoever was favoured stays it: one input that comes to its end frees more than many that all got a little further.
        if not any(origin is self.favoured for *_, origin in waiting):
            self.favoured = waiting[0][2]
        self.grace = grace
        for waiter, _, origin in waiting:
            if origin is self.favoured:
                waiter.set_result(None)
        return True

    def force_input(self) -> bool:
        """Let one more input in; False when none waits."""
        if self._input is None or self._input.done():
            return False
        self._input.set_result(True)
        return True

    def open(self) -> None:
        """Let everybody through: the run is being stopped."""
        self.limit = sys.maxsize
        for waiter, *_ in self._children:
            if not waiter.done():
                waiter.set_result(None)
        self._children.clear()
        if self._input is not None and not self._input.done():
            self._input.set_result(True)
