"""How many calls at once: a controller that finds the number by what throughput and latency say.

The core is synchronous: an engine's gate asks `Controller.try_enter` and reports with `Controller.leave`. It is safe to share
between threads; callbacks are called outside its lock.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from tournant.limits.clock import Clock

Outcome = Literal["ok", "throttled", "timed_out", "failed", "cancelled"]
"""How a call ended. ``throttled`` is 429 and 503; ``failed`` and ``cancelled`` say nothing about the load."""

STEP_DOWN = 0.7
KNEE = 2.0
_QUIETEST = 0.02
_SMALLEST_WINDOW = 16
_LEVER = 0.5
_GRAIN = 1e-9
_PATIENCE = 4
_MOST_PATIENCE = 16


@dataclass(slots=True)
class _Window:
    """What was seen since the last decision."""

    began: float
    limit: int
    full: int = 0
    running: int = 0
    sum: float = 0.0
    squares: float = 0.0
    seconds: list[float] = field(default_factory=list)

    def add(self, seconds: float, running: int, full: bool) -> None:
        self.seconds.append(seconds)
        self.running += running
        self.full += full
        self.sum += seconds
        self.squares += seconds * seconds


@dataclass(frozen=True, slots=True)
class _Measured:
    """One window's throughput, at which limit, and how far it may be off by chance."""

    limit: int
    per_second: float
    noise: float


class Controller:
    """The concurrency of one provider or stage, between `low` and `high`.

    Slow start: one more for each success while the limit is in full use, which doubles it in the time of one call, as long as
    throughput rises by at least a quarter from window to window (as many calls as the limit) and latency shows no knee.
    Then one more per window, while the limit is in full use and throughput rose beyond noise since the limit was last
    found worth it. Noise is the spread of the latencies over the square root of their number; where one more is too
    little to be seen in it, a few more are tried before the judgement. Where nothing was gained, the limit goes
    back, somewhat lower where calls queue, and waits longer each time before it tries again.

    A timeout, 429 or 503 makes it 0.7 of itself, once for each burst; so does a latency of more than `KNEE` times that of an
    unloaded provider. A cut for a timeout or for latency is taken back when the next window shows that it was not the load: no
    more timeouts, or latency as high as before. Only successes count in latency and throughput, and after slow
    start only those that began under the present limit.

    Sources: slow start and additive increase as in TCP (Jacobson, 1988), the undoing of spurious cuts as in Eifel (RFC
    3522), latency against its own minimum as in TCP Vegas (Brakmo and Peterson, 1994).

    Args:
        low: The limit never falls lower, 1 or more.
        high: The limit never rises higher.
        start: The limit to begin with.
        clock: Where time comes from.
        latency: Seconds; the latency of the unloaded provider, where it is known from an earlier run.
        settled: Whether `start` was found in an earlier run: no slow start then.
    """

    def __init__(
        self,
        low: int,
        high: int,
        start: int,
        clock: Clock,
        latency: float | None = None,
        settled: bool = False,
    ) -> None:
        self.low = low
        self.high = high
        self.running = 0
        self.latency = latency
        self.why = "as found in an earlier run" if settled else "slow start"
        self._limit = start
        self._clock = clock
        self._lock = threading.Lock()
        self._slow_start = not settled
        self._window = _Window(clock.now(), start)
        self._best: _Measured | None = None
        self._undo: tuple[str, int, float] | None = None
        self._cut_at = -math.inf
        self._doubts = 0
        self._hold = 0
        self._patience = _PATIENCE
        self._refused = False
        self._watchers: list[Callable[[int], None]] = []

    @property
    def limit(self) -> int:
        """How many calls may be under way at once, now."""
        return self._limit

    @property
    def slow_start(self) -> bool:
        """Whether it has not found its level yet."""
        return self._slow_start

    def watch(self, callback: Callable[[int], None]) -> Callable[[], None]:
        """Have `callback` called with the limit whenever someone who was refused may try again.

        That is when the limit has risen, or a call has ended since `try_enter` refused. It is called from the thread
        that reported, without a lock held.

        Returns:
            A function that ends it.
        """
        with self._lock:
            self._watchers = [*self._watchers, callback]

        def end() -> None:
            with self._lock:
                self._watchers = [one for one in self._watchers if one is not callback]

        return end

    def try_enter(self) -> bool:
        """Begin a call, if one more may be under way. ``False``: try again when a watcher is called."""
        with self._lock:
            if self.running >= self._limit:
                self._refused = True
                return False
            self.running += 1
            return True

    def leave(self, outcome: Outcome, seconds: float) -> None:
        """End a call.

        Args:
            outcome: How it ended.
            seconds: How long it took.
        """
        with self._lock:
            before = self._limit
            full = self.running >= before
            self.running -= 1
            if outcome == "ok":
                self._succeeded(seconds, full)
            elif outcome in {"throttled", "timed_out"}:
                self._refused_by_provider(outcome, seconds)
            refused, limit, watchers = self._refused, self._limit, self._watchers
            news = refused and self.running < limit
            self._refused = refused and not news
        if news or limit != before:
            for watcher in watchers:
                watcher(limit)

    # Inside; the lock is held

    def _refused_by_provider(self, outcome: Outcome, seconds: float) -> None:
        now = self._clock.now()
        # A call that began before the last cut belongs to the burst that was answered already.
        if now - seconds < self._cut_at - _GRAIN:
            if self._undo is not None and outcome == "throttled":
                self._undo = None
            return
        if outcome == "timed_out" and self._undo is None:
            undo = ("timeout", self._limit, 0.0)
        else:
            undo = None
        self._cut("a timeout" if outcome == "timed_out" else "a 429 or 503", now, undo)

    def _cut(self, why: str, now: float, undo: tuple[str, int, float] | None) -> None:
        self._set(max(self.low, math.floor(self._limit * STEP_DOWN)), f"cut after {why}")
        self._slow_start = False
        self._undo = undo
        self._cut_at = now
        self._best = None
        self._hold = 0
        self._window = _Window(now, self._limit)

    def _succeeded(self, seconds: float, full: bool) -> None:
        now = self._clock.now()
        window = self._window
        since = self._cut_at if self._slow_start else window.began
        if now - seconds < since - _GRAIN:
            return  # it ran under another limit
        window.add(seconds, self.running + 1, full)
        if self._slow_start:
            size = window.limit
            if full and not self._doubts and self._limit < self.high:
                self._set(self._limit + 1, "slow start")
        elif self._undo is not None:
            size = min(_SMALLEST_WINDOW, self._limit)
        else:
            size = max(_SMALLEST_WINDOW, 2 * self._limit)
        if len(window.seconds) >= size:
            self._decide(window, now)
            self._window = _Window(now, self._limit)

    def _decide(self, window: _Window, now: float) -> None:
        count = len(window.seconds)
        latency = sorted(window.seconds)[count // 2]
        mean = window.sum / count
        spread = math.sqrt(max(0.0, window.squares / count - mean * mean))
        noise = max(_QUIETEST, spread / mean / math.sqrt(count)) if mean > 0 else _QUIETEST
        if self._slow_start or not mean:
            per_second = count / max(now - window.began, 1e-9)
        else:
            # Little's law. Calls that end in step would make a count over time jump.
            per_second = window.running / count / mean
        measured = _Measured(window.limit, per_second, noise)
        full = 2 * window.full >= count
        undo, self._undo = self._undo, None
        if undo is not None and self._spurious(undo, latency):
            self._set(max(self._limit, undo[1]), "cut taken back: it was not the load")
            return
        self._learn_latency(latency, count)
        if not full:
            return  # whoever feeds it is slower; nothing to learn
        knee = self.latency is not None and latency > KNEE * self.latency
        if self._slow_start:
            self._double(measured, knee)
        elif knee and self._limit > self.low:
            self._cut("a rise in latency", now, ("latency", self._limit, latency))
        else:
            self._climb(measured)

    def _spurious(self, undo: tuple[str, int, float], latency: float) -> bool:
        reason, _, before = undo
        if reason == "timeout":
            return self.latency is None or latency <= KNEE * self.latency
        if latency > 0.85 * before:
            self.latency = latency  # the calls themselves have become longer
            return True
        return False

    def _learn_latency(self, latency: float, count: int) -> None:
        if self.latency is None:
            self.latency = latency
        elif latency < self.latency:
            self.latency += (0.5 if count >= 8 else 0.1) * (latency - self.latency)
        else:
            self.latency += 0.01 * (latency - self.latency)

    def _double(self, measured: _Measured, knee: bool) -> None:
        best = self._best
        if best is None or (not knee and measured.per_second >= 1.25 * best.per_second):
            self._best, self._doubts = measured, 0
            return
        self._doubts += 1
        if self._doubts < 2 and not knee:
            return
        self._slow_start = False
        self._best = None
        # Little's law: so many calls of the unloaded latency make this throughput.
        level = math.ceil(measured.per_second * (self.latency or 0.0))
        self._set(min(self._limit, max(best.limit, level)), "throughput no longer rose")

    def _climb(self, measured: _Measured) -> None:
        if self._hold > 0:
            self._hold -= 1
            return
        best = self._best
        if best is None or self._limit <= best.limit:
            self._best = measured
            self._rise("one more, to see")
            return
        gain = measured.per_second / best.per_second - 1
        lever = self._limit / best.limit - 1
        doubt = math.hypot(measured.noise, best.noise)
        if gain >= max(_LEVER * lever, doubt):
            self._best, self._patience = measured, _PATIENCE
            self._rise("throughput rose")
        elif lever > 2 * doubt or self._limit >= self.high:
            # Where latency shows a queue, fewer would do as well: go down some way, and see.
            enough = math.ceil(1.1 * measured.per_second * (self.latency or 0.0))
            level = max(self.low, enough, math.floor(0.9 * best.limit))
            self._set(min(level, best.limit), "more gained nothing")
            self._best = None
            self._hold, self._patience = self._patience, min(2 * self._patience, _MOST_PATIENCE)
        else:
            self._rise("one more, to see")

    def _rise(self, why: str) -> None:
        if self._limit < self.high:
            self._set(self._limit + 1, why)

    def _set(self, limit: int, why: str) -> None:
        self._limit = limit
        self.why = why
