"""Where the limits take their time from: the machine's clock, or one that tests wind forward.

A limit never calls ``time`` or ``asyncio.sleep`` itself; it asks its `Clock`. So a test of hours of waiting
takes milliseconds and gives the same answer each time.
"""

from __future__ import annotations

import asyncio
import selectors
import time
from collections.abc import Callable, Coroutine
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class Timer(Protocol):
    """A wake-up that was asked for."""

    def cancel(self) -> None:
        """Forget it. Nothing happens when it has rung."""


class Clock(Protocol):
    """Time, and wake-ups on the running event loop."""

    def now(self) -> float:
        """Return seconds that never run backwards, from any start."""

    def wall(self) -> float:
        """Return seconds since 1970 (UTC), for the dates that servers send."""

    def call_at(self, when: float, callback: Callable[[], None]) -> Timer:
        """Have the running event loop call `callback` when `now` has reached `when`."""


class SystemClock:
    """The machine's clock. There is one, `SYSTEM`."""

    __slots__ = ()

    def now(self) -> float:
        """Return ``time.monotonic()``."""
        return time.monotonic()

    def wall(self) -> float:
        """Return ``time.time()``."""
        return time.time()

    def call_at(self, when: float, callback: Callable[[], None]) -> Timer:
        """Have the running event loop call `callback` at `when`."""
        return asyncio.get_running_loop().call_later(max(0.0, when - time.monotonic()), callback)

    def __repr__(self) -> str:
        return "SYSTEM"

    def __reduce__(self) -> str:
        return "SYSTEM"


SYSTEM = SystemClock()


class VirtualClock:
    """A clock for tests: it stands still while anything can run, and jumps when everyone sleeps.

    ``clock.run(main())`` runs a coroutine on an event loop of its own whose time is this clock's. On that loop
    ``asyncio.sleep``, ``asyncio.timeout`` and whatever else waits for time costs none. Where all tasks wait and no wake-up
    is due, nothing could ever happen again, and the run ends with a `RuntimeError` in place of a hang.

    It is for one loop and no threads: an answer from a thread counts as nothing due.

    Args:
        start: What `now` says first, in seconds. Default 0.
        wall: What `wall` says first, in seconds since 1970. Default: a day in January 2026.
    """

    def __init__(self, start: float = 0.0, wall: float = 1_767_606_000.0) -> None:
        self._now = start
        self._offset = wall - start

    def now(self) -> float:
        """Return the clock's seconds."""
        return self._now

    def wall(self) -> float:
        """Return the clock's seconds since 1970."""
        return self._now + self._offset

    def advance(self, seconds: float) -> None:
        """Move on by hand, for code that runs without a loop."""
        self._now += seconds

    def call_at(self, when: float, callback: Callable[[], None]) -> Timer:
        """Have the clock's own loop call `callback` at `when`.

        Raises:
            RuntimeError: on any other loop; it would wait for real.
        """
        loop = asyncio.get_running_loop()
        if not isinstance(loop, _VirtualLoop) or loop.clock is not self:
            raise RuntimeError(
                "a VirtualClock was asked for a wake-up on a loop that is not its own: "
                "start the coroutine with clock.run(...)"
            )
        return loop.call_at(when, callback)

    def run(self, main: Coroutine[Any, Any, T]) -> T:
        """Run `main` to its end in virtual time and return its result."""
        with asyncio.Runner(loop_factory=lambda: _VirtualLoop(self)) as runner:
            return runner.run(main)


class _VirtualSelector(selectors.DefaultSelector):
    """Looks at the sockets without waiting; where it would wait, moves the clock."""

    def __init__(self, clock: VirtualClock) -> None:
        super().__init__()
        self._clock = clock

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready or (timeout is not None and timeout <= 0):
            return ready
        if timeout is None:
            raise RuntimeError(
                "every task waits and no wake-up is due: in real time this would hang for ever"
            )
        self._clock.advance(timeout)
        return ready


class _VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop that reads a `VirtualClock`."""

    def __init__(self, clock: VirtualClock) -> None:
        super().__init__(_VirtualSelector(clock))
        self.clock = clock

    def time(self) -> float:
        return self.clock.now()
