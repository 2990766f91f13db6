"""Advances a plain iterable on a thread of its own, so that a source may block.

The thread runs ahead of the run, but not far: by a bounded number of inputs, and of bytes where the run has a memory limit.
An input that is there is handed over at once, however long the next one takes.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from tournant.pool.steps import plain

#: An input, its key, its fingerprint.
Entry = tuple[Any, Any, Any]
#: Seconds that the source gets to close.
_CLOSE_SECONDS = 2.0


class Puller:
    """Pulls inputs from an iterable.

    Args:
        loop: the run's loop.
        iterable: the source.
        name: gives key and fingerprint of an input and its position; called on the thread.
        ahead: inputs that the thread may be ahead of what was put.
        weigh: gives the bytes of an input; ``None`` where they don't matter.
        most_bytes: bytes that it may be ahead.
        context: what the iterable is advanced in; by default a context of the thread's own.

    Attributes:
        pulled: inputs that came out of the iterable.
        put: those of them that `was_put` was told of.
        problem: what closing the iterable raised.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        iterable: Any,
        name: Callable[[Any, int], tuple[Any, Any]],
        *,
        ahead: int,
        weigh: Callable[[Any], int] | None = None,
        most_bytes: int = 0,
        context: contextvars.Context | None = None,
    ) -> None:
        self.pulled = 0
        self.put = 0
        self.problem: Exception | None = None
        self._loop = loop
        self._iterable = iterable
        self._name = name
        self._ahead = ahead
        self._weigh = weigh
        self._most_bytes = most_bytes
        self._bytes_pulled = self._bytes_put = 0
        self._sizes: deque[int] = deque()
        self._ready: deque[Entry] = deque()
        self._error: Exception | None = None
        self._ended = False
        self._closing = False
        self._pulling = False
        self._idle = False
        self._blocked = False
        self._room = threading.Event()
        self._waiter: asyncio.Future[None] | None = None
        self._gone: asyncio.Future[None] = loop.create_future()
        self._thread = threading.Thread(
            target=(context or contextvars.Context()).run,
            args=(self._work,),
            name="tournant-source",
            daemon=True,
        )
        self._thread.start()

    # On the loop.

    async def take(self) -> list[Entry]:
        """Wait for inputs and return all that are there; an empty list at the end.

        Raises:
            Exception: what the iterable raised, once everything before that has been taken.
        """
        while not self._ready and not self._ended and not self._closing:
            self._waiter = self._loop.create_future()
            # First say that somebody waits, then look again: the thread does it the other way round.
            self._idle = True
            if self._ready or self._ended:
                break
            await self._waiter
        self._idle = False
        if self._closing:
            return []
        entries: list[Entry] = []
        while self._ready:
            entries.append(self._ready.popleft())
        if not entries and self._error is not None:
            raise self._error
        return entries

    def was_put(self) -> None:
        """Count an input as having entered the run (or as skipped): the thread may go on by one."""
        self.put += 1
        if self._weigh is not None:
            self._bytes_put += self._sizes.popleft()
        if self._blocked and not self._full(self._ahead // 2):
            self._room.set()

    def stop(self) -> None:
        """Pull no more, and wait no longer for an input that may never come."""
        self._closing = True
        self._room.set()
        self._wake()

    async def close(self) -> None:
        """Have the thread close the iterable and end; wait for that unless it is in the middle of a ``next()``."""
        self.stop()
        if not self._pulling:
            await asyncio.wait([self._gone], timeout=_CLOSE_SECONDS)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # On the thread.

    def _work(self) -> None:
        iterator: Iterator[Any] | None = None
        try:
            self._pulling = True
            iterator = iter(self._iterable)
            while self._may_pull():
                self._pulling = True
                value = next(iterator)
                if self._weigh is not None:
                    size = self._weigh(value)
                    self._sizes.append(size)
                    self._bytes_pulled += size
                self._ready.append((value, *self._name(value, self.pulled)))
                self.pulled += 1
                self._pulling = False
                self._tell()
        except StopIteration:
            pass
        except BaseException as error:
            self._error = plain(error)
        self._pulling = False
        self._ended = True
        self._tell()
        close = getattr(iterator, "close", None)
        try:
            if close is not None:
                close()
        except BaseException as error:
            self.problem = plain(error)
        self._say(lambda: None if self._gone.done() else self._gone.set_result(None))

    def _may_pull(self) -> bool:
        """Wait until the run has caught up; False when nobody wants more."""
        while not self._closing:
            if not self._full(self._ahead - 1):
                return True
            self._pulling = False
            self._room.clear()
            self._blocked = True
            # What was put in between has not seen that somebody waits.
            if self._full(self._ahead // 2) and not self._closing:
                self._room.wait()
            self._blocked = False
        return False

    def _full(self, most: int) -> bool:
        """Tell whether more than `most` inputs, or too many bytes, were pulled and not put."""
        behind = self.pulled - self.put
        return behind > most or (
            behind > 0 and self._bytes_pulled - self._bytes_put >= self._most_bytes > 0
        )

    def _tell(self) -> None:
        if self._idle:
            self._idle = False
            self._say(self._wake)

    def _say(self, what: Callable[[], object]) -> None:
        # A loop that is closed has nobody left who waits.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(what)
