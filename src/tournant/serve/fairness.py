"""A queue that is fair between callers by what they use, not by how often they ask.

Source: start-time fair queueing (Goyal, Vin and Cheng 1996). Every request gets a virtual start time: where its caller's last
request ends, or now, whichever is later. The earliest goes first. So a caller who sends many or large requests waits
behind itself, and one who sends few is served almost at once.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Iterator
from itertools import count


class Share:
    """What one caller has used, in virtual time.

    Attributes:
        finish: The virtual time at which its last request ends.
        queued: Tokens of its requests that wait.
        waiting: Its requests that wait, oldest first.
    """

    __slots__ = ("finish", "queued", "waiting")

    def __init__(self) -> None:
        self.finish = 0.0
        self.queued = 0.0
        self.waiting: dict[Waiter, None] = {}


class Waiter:
    """One request in the queue."""

    __slots__ = ("future", "share", "since", "start", "tokens")

    def __init__(self, share: Share, tokens: float, start: float, since: float) -> None:
        self.share = share
        self.tokens = tokens
        self.start = start
        self.since = since
        self.future: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class FairQueue:
    """Requests that wait, in the order in which they should go.

    Attributes:
        tokens: Tokens of all that wait.
    """

    def __init__(self) -> None:
        self.tokens = 0.0
        self._now = 0.0
        self._heap: list[tuple[float, int, Waiter]] = []
        self._order = count()
        self._length = 0
        self._shares: dict[Share, None] = {}

    def __len__(self) -> int:
        return self._length

    def charge(self, share: Share, tokens: float) -> float:
        """Count a request of `tokens` against a caller; return its virtual start. A negative figure gives some back."""
        start = max(self._now, share.finish)
        share.finish = max(self._now, start + tokens)
        return start

    def join(self, share: Share, tokens: float, since: float) -> Waiter:
        """Put a request into the queue."""
        waiter = Waiter(share, tokens, self.charge(share, tokens), since)
        heapq.heappush(self._heap, (waiter.start, next(self._order), waiter))
        share.waiting[waiter] = None
        self._shares[share] = None
        share.queued += tokens
        self.tokens += tokens
        self._length += 1
        return waiter

    def leave(self, waiter: Waiter) -> None:
        """Take a request out that is not to be served; its caller has not used it."""
        self._out(waiter)
        self.charge(waiter.share, -waiter.tokens)

    def pop(self) -> Waiter | None:
        """Take out whoever goes next, or return ``None``."""
        while self._heap:
            _, _, waiter = heapq.heappop(self._heap)
            if waiter in waiter.share.waiting:
                self._now = max(self._now, waiter.start)
                self._out(waiter)
                return waiter
        return None

    def greediest(self) -> Share | None:
        """Return the caller with the most tokens in the queue."""
        return max(self._shares, key=lambda share: share.queued, default=None)

    def oldest(self) -> float | None:
        """Return since when the oldest request waits, on the monotonic clock."""
        return min((waiter.since for waiter in self), default=None)

    def __iter__(self) -> Iterator[Waiter]:
        return (waiter for _, _, waiter in self._heap if waiter in waiter.share.waiting)

    def _out(self, waiter: Waiter) -> None:
        share = waiter.share
        del share.waiting[waiter]
        share.queued -= waiter.tokens
        if not share.waiting:
            share.queued = 0.0
            del self._shares[share]
        self.tokens -= waiter.tokens
        self._length -= 1
        if not self._length:
            self._heap.clear()
            self.tokens = 0.0
