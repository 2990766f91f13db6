"""Waiting in line, first come first served, for coroutines of any number of event loops.

A line has no lock of its own: its owner holds one around every call. Waking a waiter only
schedules; no code of the waiter runs inside.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from typing import Generic, TypeVar

T = TypeVar("T")


class Waiter(Generic[T]):
    """One coroutine that waits.

    Attributes:
        what: What it waits for; the line's owner knows what that means.
        future: Done when it is its turn.
        granted: Whether it was its turn. It can be cancelled all the same before it has noticed.
    """

    __slots__ = ("future", "granted", "loop", "what")

    def __init__(self, what: T) -> None:
        self.what = what
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[None] = self.loop.create_future()
        self.granted = False

    def gone(self, loop: asyncio.AbstractEventLoop | None) -> bool:
        """Tell whether nobody waits any more, as far as `loop`, the running one, can know."""
        return self.loop.is_closed() or (self.loop is loop and self.future.done())

    def wake(self, loop: asyncio.AbstractEventLoop | None) -> bool:
        """Give it its turn. ``False`` when its event loop is closed and nobody is there to take it."""
        self.granted = True
        if self.loop is loop:
            self._set()
            return True
        try:
            self.loop.call_soon_threadsafe(self._set)
        except RuntimeError:
            return False
        return True

    def _set(self) -> None:
        if not self.future.done():
            self.future.set_result(None)


class Line(Generic[T]):
    """Waiters in the order in which they came. Joining, leaving and looking are O(1)."""

    __slots__ = ("_loops", "_waiters")

    def __init__(self) -> None:
        self._waiters: OrderedDict[Waiter[T], None] = OrderedDict()
        self._loops: Counter[asyncio.AbstractEventLoop] = Counter()

    def __len__(self) -> int:
        return len(self._waiters)

    def join(self, what: T) -> Waiter[T]:
        """Put the running coroutine at the end."""
        waiter = Waiter(what)
        self._waiters[waiter] = None
        self._loops[waiter.loop] += 1
        return waiter

    def head(self) -> Waiter[T] | None:
        """Return the first."""
        return next(iter(self._waiters), None)

    def leave(self, waiter: Waiter[T]) -> None:
        """Take `waiter` out, wherever it stands; nothing happens if it is out."""
        if waiter not in self._waiters:
            return
        del self._waiters[waiter]
        self._loops[waiter.loop] -= 1
        if not self._loops[waiter.loop]:
            del self._loops[waiter.loop]

    def loops(self) -> list[asyncio.AbstractEventLoop]:
        """Return the event loops on which someone waits."""
        return list(self._loops)


def running_loop() -> asyncio.AbstractEventLoop | None:
    """Return the running event loop, or ``None`` on a thread without one."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
