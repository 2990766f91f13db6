"""The run's memory limit: how many bytes are queued and in flight, and who waits for room among them.

New items ask before they enter. What barriers hold, and the parents of a fan-out that itself waits, are in nobody's way to
finish, so they don't count against a waiting child: a gather that needs one more item always gets it.
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import Callable
from typing import Any

from tournant.errors import InvalidPipeline

_UNITS = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_SAMPLE = 16


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


def size_of(value: Any, depth: int = 4) -> int:
    """Estimate the bytes that `value` holds on to.

    Exact for strings, bytes and arrays; containers and dataclasses are followed a few levels down, long lists by a
    sample. What the estimate cannot see into counts as its own shallow size.
    """
    buffer_size = getattr(value, "nbytes", None)
    if isinstance(buffer_size, int):
        return buffer_size + 64
    size = sys.getsizeof(value, 64)
    if depth == 0 or isinstance(value, (str, bytes, bytearray, int, float, bool, type(None))):
        return size
    inside: Any = None
    count = 0
    if isinstance(value, dict):
        inside, count = list(value.values()), len(value)
        size += sum(sys.getsizeof(key, 64) for key in list(value)[:_SAMPLE])
    elif isinstance(value, (list, tuple, set, frozenset)):
        inside, count = list(value), len(value)
    elif hasattr(value, "__dict__"):
        inside = list(vars(value).values())
        count = len(inside)
    elif hasattr(type(value), "__slots__"):
        inside = [
            getattr(value, name, None) for name in type(value).__slots__ if isinstance(name, str)
        ]
        count = len(inside)
    if not count:
        return size
    if count <= _SAMPLE * 4:
        return size + sum(size_of(part, depth - 1) for part in inside)
    sample = inside[:: max(1, count // _SAMPLE)]
    return size + sum(size_of(part, depth - 1) for part in sample) * count // len(sample)


class Budget:
    """Bytes queued and in flight in one run.

    Attributes:
        limit: what `total` is to stay below.
        total: estimated bytes of all live items.
        held: those of them that barriers hold.
        blocked: those of them whose stage waits for room itself.
        peak: the highest `total`.
    """

    __slots__ = ("_loop", "_waiting", "blocked", "held", "limit", "on_room", "peak", "total")

    def __init__(self, limit: int, loop: asyncio.AbstractEventLoop) -> None:
        self.limit = limit
        self.total = 0
        self.held = 0
        self.blocked = 0
        self.peak = 0
        self._loop = loop
        self._waiting: deque[asyncio.Future[None]] = deque()
        self.on_room: Callable[[], None] | None = None

    def admits(self, size: int = 0, *, child: bool = False) -> bool:
        """Tell whether `size` more bytes may enter; `child` for the result of a fan-out."""
        moving = self.total - self.blocked - (self.held if child else 0)
        return moving <= 0 or moving + size <= self.limit

    def add(self, size: int) -> None:
        """Count bytes that have entered (or left, when negative)."""
        self.total += size
        if self.total > self.peak:
            self.peak = self.total
        elif size < 0:
            self.changed()

    def hold(self, size: int) -> None:
        """Count bytes that a barrier begins to hold (or lets go, when negative)."""
        self.held += size
        self.changed()

    def changed(self) -> None:
        """Let those who wait look again."""
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
                break
        if self.on_room is not None:
            self.on_room()

    async def admitted(self, size: int, *, parent: int = 0, child: bool = False) -> None:
        """Wait until `size` bytes may enter; `parent` bytes stand still meanwhile."""
        if self.admits(size, child=child):
            return
        self.blocked += parent
        try:
            # Standing still may itself be what lets another one through.
            self.changed()
            while not self.admits(size, child=child):
                waiter = self._loop.create_future()
                self._waiting.append(waiter)
                await waiter
        finally:
            self.blocked -= parent
        if self._waiting and self.admits(child=child):
            self._loop.call_soon(self.changed)

    @property
    def waiting(self) -> bool:
        """Whether anybody waits."""
        return bool(self._waiting)

    def open(self) -> None:
        """Let everybody through: the run is being stopped."""
        self.limit = sys.maxsize
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
