"""The state behind one key: its buckets, its freeze, and the one line in which everyone waits.

One lock guards it, so that event loops in several threads may share it; it is held for arithmetic only, never across an
await or a user's code. Each loop that has waiters keeps one timer of its own, so a loop that is blocked or gone delays
nobody on another.
"""

from __future__ import annotations

import asyncio
import threading

from tournant.limits.clock import Clock, Timer
from tournant.limits.figures import Rate
from tournant.limits.headers import LONGEST_WAIT, HeaderFacts
from tournant.limits.kinds import SAME_BURST, Kind
from tournant.limits.snapshot import LimitSnapshot
from tournant.limits.waiting import Line, running_loop

_FIRST_FREEZE = 1.0
_LONGEST_FREEZE = 60.0
_BINDING = 0.7


class Ticket:
    """One call's place in a limit: what it was charged, and when it was let go."""

    __slots__ = ("charged", "granted_at", "held", "marks", "refused")

    def __init__(self, tokens: float) -> None:
        self.charged = tokens
        self.granted_at = -1.0
        self.held = False
        self.refused = False
        self.marks = (0.0, 0.0)


class SharedLimit:
    """The state that everyone who names one key shares. Safe to use from several threads.

    Args:
        requests: The configured limit on requests, or ``None``.
        tokens: The configured limit on tokens, or ``None``.
        burst_seconds: How many seconds' worth may be saved up, or ``None`` for the default.
        clock: Where time comes from.
    """

    def __init__(
        self,
        requests: Rate | None,
        tokens: Rate | None,
        burst_seconds: float | None,
        clock: Clock,
    ) -> None:
        now = clock.now()
        self.clock = clock
        self.requests = Kind("requests", requests, burst_seconds, now)
        self.tokens = Kind("tokens", tokens, burst_seconds, now)
        self.frozen_until = now
        self.throttles = 0
        self._lock = threading.Lock()
        self._line: Line[Ticket] = Line()
        self._timers: dict[asyncio.AbstractEventLoop, tuple[float, Timer | None]] = {}
        self._stepped_at = -1e9
        self._in_a_row = 0
        self._probe = False
        self._asked = False
        self._wanted = False

    # Passing

    def try_take(self, ticket: Ticket) -> bool:
        """Let `ticket` pass if it can pass now and nobody is before it."""
        with self._lock:
            passed = not len(self._line) and self._pass(ticket, self._refill())
            self._wanted = self._wanted or not passed
            return passed

    async def take(self, ticket: Ticket) -> None:
        """Wait until `ticket` has passed, behind everyone who came before. When cancelled, nothing was taken."""
        with self._lock:
            if not len(self._line) and self._pass(ticket, self._refill()):
                return
            waiter = self._line.join(ticket)
            self._pump()
        try:
            await waiter.future
        except BaseException:
            with self._lock:
                if waiter.granted:
                    self._take_back(ticket)
                self._line.leave(waiter)
                self._pump()
            raise

    def settle(self, ticket: Ticket, tokens: float) -> None:
        """Charge `ticket` with `tokens` in place of what it was charged before."""
        with self._lock:
            now = self._refill()
            self._charge(ticket, tokens, now)
            self._pump()

    def release(self, ticket: Ticket) -> None:
        """Undo `ticket`: the call never left."""
        with self._lock:
            self._refill()
            self._take_back(ticket)
            self._pump()

    def close(self, ticket: Ticket, passed: bool) -> None:
        """End the call of `ticket`; `passed` says that the provider took it. What it was charged stays: it was counted there."""
        with self._lock:
            if not ticket.held:
                return
            self._let_go(ticket)
            if passed and not ticket.refused and ticket.granted_at > self._stepped_at:
                self._in_a_row = 0

    # Learning

    def throttled(self, ticket: Ticket | None, retry_after: float | None, of: str | None) -> None:
        """Freeze everyone, and step down once for each burst of refusals.

        A refusal belongs to a burst that was answered already when its call left before the step
        down. Without a ticket that is guessed: while frozen, and for a second after the step.
        """
        with self._lock:
            now = self._refill()
            self.throttles += 1
            if ticket is None:
                left_at, marks = now, (self.requests.meter.total, self.tokens.meter.total)
                same = now < self.frozen_until or now - self._stepped_at < SAME_BURST
            else:
                if ticket.refused:
                    return
                ticket.refused = True
                left_at, marks = ticket.granted_at, ticket.marks
                same = left_at <= self._stepped_at
                self._charge(ticket, 0.0, now)
            self.requests.refused += 1
            asked = retry_after is not None
            if not same:
                self._in_a_row += 1
                if self._in_a_row == 1 or ticket is None:
                    # Refused again before anything passed, it is not the rate: a minute that others have used up,
                    # or that is not over. Then to wait longer is right, and to go slower afterwards is not.
                    self._step_down(left_at, marks, of, now)
                self._stepped_at = now
                if retry_after is None:
                    retry_after = _FIRST_FREEZE * 2.0 ** min(self._in_a_row - 1, 16)
                    retry_after = min(_LONGEST_FREEZE, retry_after)
            if retry_after:
                self._freeze(now + min(retry_after, LONGEST_WAIT), asked)
            for kind in (self.requests, self.tokens):
                if kind.bucket is not None:
                    kind.bucket.drain()
            self._pump()

    def observe(self, facts: HeaderFacts, ticket: Ticket | None) -> None:
        """Follow what a reply's headers say."""
        with self._lock:
            now = self._refill()
            counted = (1.0, ticket.charged) if ticket is not None and ticket.held else (0.0, 0.0)
            kinds = ((self.requests, facts.requests), (self.tokens, facts.tokens))
            for (kind, said), own in zip(kinds, counted, strict=True):
                if said is not None:
                    kind.advertise(said, own, now)
            self._pump()

    # What is shown

    def snapshot(self, label: str) -> LimitSnapshot:
        """Return how things stand, under the name `label`."""
        with self._lock:
            now = self._refill()
            return LimitSnapshot(
                key=label,
                requests=self.requests.snapshot(),
                tokens=self.tokens.snapshot(),
                frozen_for=max(0.0, self.frozen_until - now),
                waiting=len(self._line),
                in_flight=round(self.requests.on_the_way),
                throttled=self.throttles,
                asked=self._asked,
            )

    # Inside; the lock is held

    def _refill(self) -> float:
        now = self.clock.now()
        pressed = self._wanted or len(self._line) > 0
        self._wanted = False
        frozen_until = self.frozen_until
        for kind in (self.requests, self.tokens):
            bucket = kind.bucket
            if bucket is not None:
                bucket.refill(min(now, frozen_until), frozen=True)
                bucket.refill(now, pressed)
        return now

    def _wait(self, ticket: Ticket, now: float) -> float:
        if now < self.frozen_until:
            return self.frozen_until - now
        if self._probe:
            return 0.0  # the provider said that one may come now
        wait = 0.0
        if self.requests.bucket is not None:
            wait = self.requests.bucket.wait_for(1.0)
        if self.tokens.bucket is not None:
            wait = max(wait, self.tokens.bucket.wait_for(ticket.charged))
        return wait

    def _pass(self, ticket: Ticket, now: float) -> bool:
        if self._wait(ticket, now) > 0:
            return False
        self._probe = False
        ticket.marks = (self.requests.meter.total, self.tokens.meter.total)
        ticket.granted_at = now
        ticket.held = True
        for kind, cost in ((self.requests, 1.0), (self.tokens, ticket.charged)):
            kind.meter.count(now, cost)
            kind.on_the_way += cost
            if kind.bucket is not None:
                kind.bucket.take(cost)
        return True

    def _charge(self, ticket: Ticket, tokens: float, now: float) -> None:
        less = ticket.charged - tokens
        ticket.charged = tokens
        self.tokens.meter.count(now, -less)
        if ticket.held:
            self.tokens.on_the_way -= less
        if self.tokens.bucket is not None:
            self.tokens.bucket.give(less)

    def _take_back(self, ticket: Ticket) -> None:
        if not ticket.held:
            return
        self._let_go(ticket)
        for kind, cost in ((self.requests, 1.0), (self.tokens, ticket.charged)):
            kind.meter.count(self.clock.now(), -cost)
            if kind.bucket is not None:
                kind.bucket.give(cost)
        ticket.charged = 0.0

    def _let_go(self, ticket: Ticket) -> None:
        ticket.held = False
        self.requests.on_the_way -= 1.0
        self.tokens.on_the_way -= ticket.charged

    def _freeze(self, until: float, asked: bool) -> None:
        if until > self.frozen_until:
            self.frozen_until, self._asked = until, asked
        self._probe = True

    def _step_down(
        self, left_at: float, marks: tuple[float, float], of: str | None, now: float
    ) -> None:
        kinds = [self.requests, self.tokens]
        known = [kind for kind in kinds if kind.bucket is not None or kind.name == of]
        if not known:
            known = [self.requests]
        for kind in known:
            kind.discover(now)
        if of is not None:
            chosen = [kind for kind in known if kind.name == of] or known
        else:
            chosen = [kind for kind in known if kind.use(now) >= _BINDING]
            chosen = chosen or [max(known, key=lambda kind: kind.use(now))]
        for kind, passed in zip(kinds, marks, strict=True):
            if kind in chosen:
                kind.step_down(left_at, passed, now)

    def _pump(self) -> None:
        """Let pass whoever may, in order, and see to it that someone looks again in time."""
        loop = running_loop()
        now = self._refill()
        while (head := self._line.head()) is not None:
            if head.gone(loop):
                self._line.leave(head)
            elif self._pass(head.what, now):
                self._line.leave(head)
                if not head.wake(loop):
                    self._take_back(head.what)
            else:
                self._look_again(now + self._wait(head.what, now), loop)
                return

    def _look_again(self, when: float, here: asyncio.AbstractEventLoop | None) -> None:
        for loop in [loop for loop in self._timers if loop.is_closed()]:
            del self._timers[loop]
        for loop in self._line.loops():
            due, timer = self._timers.get(loop, (float("inf"), None))
            if due <= when + 1e-6:
                continue
            if loop is here:
                if timer is not None:
                    timer.cancel()
                timer = self.clock.call_at(when, lambda loop=loop: self._ring(loop))  # type: ignore[misc]
                self._timers[loop] = (when, timer)
            else:
                # Its own thread sets its timer: ringing at once, it finds that it is too early.
                self._timers[loop] = (when, None)
                try:
                    loop.call_soon_threadsafe(self._ring, loop)
                except RuntimeError:
                    self._timers.pop(loop, None)

    def _ring(self, loop: asyncio.AbstractEventLoop) -> None:
        with self._lock:
            _, timer = self._timers.pop(loop, (0.0, None))
            if timer is not None:
                timer.cancel()
            self._pump()
