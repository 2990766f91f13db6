"""One timer for the whole server: it looks after everything that could last too long, and measures how late the loop is.

A timer for each token or each connection would cost more than the tokens do. What registers here is looked at four times a second,
and counts in ticks.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from typing import Protocol

TICK = 0.25
_PROBES = 10  # looks at the loop's lateness in a tick
_LATE = 0.004
_BUSY = 0.75
_HOLD = 1.0  # gathering takes the load away; it goes on for so long before it is tried without
_SMOOTH = 0.3
_log = logging.getLogger("tournant.serve")


class Watched(Protocol):
    """What the ticker looks after."""

    def tick(self, now: float) -> None:
        """Look whether something has lasted too long. `now` is on the loop's clock. It must not raise, and must be quick."""


class Ticker:
    """Looks after what is registered, and measures the loop.

    Attributes:
        loop: The loop, from the start on.
        watched: What is looked after: add to it and discard from it.
        lag: How late the loop is, in seconds, smoothed over about a tenth of a second.
        busy: The share of the time in which the loop's thread worked, smoothed in the same way.
        loaded: Whether the loop has so much to do that writes should be gathered.
        lags: The latest measurements, in seconds.
    """

    def __init__(self) -> None:
        self.loop: asyncio.AbstractEventLoop
        self.watched: set[Watched] = set()
        self.lag = 0.0
        self.busy = 0.0
        self.loaded = False
        self._loaded_until = 0.0
        self._worked = 0.0
        self._looked_at = 0.0
        self.lags: deque[float] = deque(maxlen=1_200)
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        self._count = 0

    def start(self) -> None:
        """Begin, on the running loop."""
        self.loop = asyncio.get_running_loop()
        self._worked, self._looked_at = time.thread_time(), self.loop.time()
        self._again()

    def stop(self) -> None:
        """End."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def lag_percentiles(self) -> tuple[float, float]:
        """Return the median and the 99th percentile of the loop's lateness over the last half minute, in seconds."""
        lags = sorted(self.lags)
        if not lags:
            return 0.0, 0.0
        return lags[len(lags) // 2], lags[min(len(lags) - 1, int(len(lags) * 0.99))]

    def _again(self) -> None:
        self._due = self.loop.time() + TICK / _PROBES
        self._timer = self.loop.call_at(self._due, self._ring)

    def _ring(self) -> None:
        now = self.loop.time()
        # The loop's clock has a grain of a millisecond; what is below it is nobody's fault.
        lag = max(0.0, now - self._due - 0.001)
        self.lags.append(lag)
        self.lag += _SMOOTH * (lag - self.lag)
        worked = time.thread_time()
        busy = (worked - self._worked) / max(1e-6, now - self._looked_at)
        self._worked, self._looked_at = worked, now
        self.busy += _SMOOTH * (busy - self.busy)
        if self.lag > _LATE or self.busy > _BUSY:
            self._loaded_until = now + _HOLD
        self.loaded = now < self._loaded_until
        self._count += 1
        if self._count >= _PROBES:
            self._count = 0
            for one in list(self.watched):
                try:
                    one.tick(now)
                except Exception:
                    _log.exception("looking after %r failed", one)
        self._again()
