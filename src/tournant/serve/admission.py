"""Who may begin, before any work is done for it: the caller's own limits first, then the server's room.

A refusal for the caller's own limits is a 429, one for want of room a 503; both say when to come again, and a refused request has
used nothing. Whoever must wait for room waits in a queue that is fair between callers by tokens.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

from tournant.limits import Rate, RateLimit, Reservation
from tournant.serve.errors import HTTPError, busy
from tournant.serve.fairness import FairQueue, Share, Waiter
from tournant.serve.keys import ANONYMOUS, Grant
from tournant.serve.settings import ServeSettings

_SMOOTH = 0.1
_FIRST_GUESS = 2.0


class Caller:
    """What the server knows of one key: its limits, and what it uses now.

    Attributes:
        name: What it is called in metrics.
        limit: Its rates, or ``None``.
        streams: How many answers it may have at once, or ``None``.
        running: How many it has.
        share: Its place in the queue.
        requests: How many requests of it were let in.
        tokens: How many tokens they used.
        refused: How many requests of it were refused for its own limits.
    """

    __slots__ = ("limit", "name", "refused", "requests", "running", "share", "streams", "tokens")

    def __init__(self, grant: Grant, settings: ServeSettings) -> None:
        self.name = grant.name
        requests = grant.requests or settings.requests_per_key
        tokens = grant.tokens or settings.tokens_per_key
        self.limit: RateLimit | None = None
        if requests is not None or tokens is not None:
            first = requests or tokens
            assert isinstance(first, Rate)
            # A whole period's worth may go at once after a pause: that is what people read in "600/min".
            self.limit = RateLimit(requests, tokens, burst=max(1.0, first.amount))
        self.streams = grant.streams or settings.streams_per_key
        self.running = 0
        self.share = Share()
        self.requests = 0
        self.tokens = 0.0
        self.refused = 0


class Charge:
    """What a request costs its caller.

    Attributes:
        tokens: The tokens, by estimate, until it is settled.
        reservation: Its place in the caller's own limits, if there are any.
    """

    __slots__ = ("reservation", "tokens")

    def __init__(self, tokens: float, reservation: Reservation | None) -> None:
        self.tokens = tokens
        self.reservation = reservation

    def settle(self, tokens: float) -> None:
        """Charge what was really used in place of the estimate."""
        self.tokens = tokens
        if self.reservation is not None:
            self.reservation.settle(tokens)


class Ticket:
    """One request that was let in. Close it when it has ended, whatever happened; closing twice does nothing.

    Attributes:
        tokens: What it is charged, by estimate, until it is settled.
    """

    __slots__ = ("_admission", "_closed", "_reservation", "_since", "caller", "tokens")

    def __init__(
        self, admission: Admission, caller: Caller, tokens: float, reservation: Reservation | None
    ) -> None:
        self._admission = admission
        self._reservation = reservation
        self._closed = False
        self._since = 0.0
        self.caller = caller
        self.tokens = tokens

    def settle(self, tokens: float) -> None:
        """Charge what was really used in place of the estimate."""
        if self._reservation is not None:
            self._reservation.settle(tokens)
        self._admission.queue.charge(self.caller.share, tokens - self.tokens)
        self.tokens = tokens

    def refund(self) -> None:
        """Give everything back: nothing was done for the request."""
        if self._reservation is not None:
            self._reservation.release()
        self._admission.queue.charge(self.caller.share, -self.tokens)
        self.tokens = 0.0

    def close(self) -> None:
        """Make room for the next."""
        if not self._closed:
            self._closed = True
            if self._reservation is not None:
                self._reservation.close()
            self._admission._left(self, self._since)


class Admission:
    """Lets requests in.

    Attributes:
        most: How many may be in progress at once.
        running: How many are.
        queue: Those that wait.
        closed: Why nobody is let in any more, or ``None``.
        refused: How many were refused for want of room.
    """

    def __init__(self, settings: ServeSettings) -> None:
        self._settings = settings
        self._callers: OrderedDict[str, Caller] = OrderedDict()
        self.most = settings.max_streams
        self.running = 0
        self.queue = FairQueue()
        self.closed: HTTPError | None = None
        self.refused = 0
        self._seconds = _FIRST_GUESS

    def caller(self, grant: Grant) -> Caller:
        """Return what is known of a key."""
        caller = self._callers.get(grant.name)
        if caller is None:
            caller = self._callers[grant.name] = Caller(grant, self._settings)
        return caller

    def anonymous(self) -> Caller:
        """Return the one caller of a server without keys."""
        return self.caller(Grant(ANONYMOUS))

    def callers(self) -> list[Caller]:
        """Return everyone who has come so far."""
        return list(self._callers.values())

    async def enter(self, caller: Caller, tokens: float) -> Ticket:
        """Let a request in, at once or after its time in the queue.

        Args:
            caller: Whose it is.
            tokens: What it will use, by estimate.

        Raises:
            HTTPError: 429 for the caller's own limits, 503 for want of room or while the server stops.
        """
        ticket = self._own_limits(caller, tokens)
        try:
            if self.closed is not None:
                raise self.closed
            if self.running >= self.most or len(self.queue):
                await self._wait(caller, tokens)
            else:
                self.queue.charge(caller.share, tokens)
                self.running += 1
        except BaseException:
            caller.running -= 1
            if ticket._reservation is not None:
                ticket._reservation.release()
            raise
        caller.requests += 1
        ticket._since = time.monotonic()
        return ticket

    @contextmanager
    def charged(self, caller: Caller, tokens: float = 0.0) -> Iterator[Charge]:
        """Charge a request that needs no room of its own (a search, embeddings) to its caller's rates.

        Inside of the block the charge is settled by what was really used. Where the block fails, it is a request without tokens.

        Raises:
            HTTPError: 429 for the caller's own limits, 503 while the server stops.
        """
        if self.closed is not None:
            raise self.closed
        charge = Charge(tokens, self._reserve(caller, tokens))
        caller.requests += 1
        try:
            yield charge
        except BaseException:
            charge.settle(0.0)
            raise
        finally:
            if charge.reservation is not None:
                charge.reservation.close()
            caller.tokens += charge.tokens

    def close(self, why: HTTPError) -> None:
        """Let nobody in any more, and send away who waits."""
        self.closed = why
        while (waiter := self.queue.pop()) is not None:
            if not waiter.future.done():
                waiter.future.set_exception(why)

    def expected_wait(self) -> float:
        """Return the seconds until there should be room for one more, from how long answers took lately."""
        ahead = len(self.queue) + 1
        return self._seconds * ahead / self.most

    # Inside

    def _own_limits(self, caller: Caller, tokens: float) -> Ticket:
        if caller.streams is not None and caller.running >= caller.streams:
            caller.refused += 1
            raise busy(
                429,
                f"{caller.streams} answers of this key are in progress, and it may have no more at once: wait for one to end",
                self._seconds / caller.streams,
                "too_many_streams",
            )
        ticket = Ticket(self, caller, tokens, self._reserve(caller, tokens))
        caller.running += 1
        return ticket

    def _reserve(self, caller: Caller, tokens: float) -> Reservation | None:
        limit = caller.limit
        if limit is None:
            return None
        reservation = limit.try_reserve(tokens)
        if reservation is None:
            caller.refused += 1
            what, seconds = _until(limit, tokens)
            raise busy(
                429,
                f"this key's limit of {what} is used up: wait {seconds:.0f} s, or ask for a higher limit",
                seconds,
            )
        return reservation

    async def _wait(self, caller: Caller, tokens: float) -> None:
        self._make_room(caller, tokens)
        waiter = self.queue.join(caller.share, tokens, time.monotonic())
        try:
            async with asyncio.timeout(self._settings.queue_seconds):
                await waiter.future
        except BaseException as error:
            if waiter in caller.share.waiting:
                self.queue.leave(waiter)
            elif (
                waiter.future.done()
                and not waiter.future.cancelled()
                and not waiter.future.exception()
            ):
                self._free()  # it was let in at the very moment that it left
            if isinstance(error, TimeoutError):
                self.refused += 1
                raise self._full() from None
            raise

    def _make_room(self, caller: Caller, tokens: float) -> None:
        """See that the queue has room for a request: the newest of whoever has most in it goes, if that is more than the caller has."""
        most = self._settings.max_queued_tokens
        while len(self.queue) and self.queue.tokens + tokens > most:
            greedy = self.queue.greediest()
            if (
                greedy is None
                or greedy is caller.share
                or greedy.queued <= caller.share.queued + tokens
            ):
                self.refused += 1
                raise self._full()
            newest = next(reversed(greedy.waiting))
            self.queue.leave(newest)
            self.refused += 1
            if not newest.future.done():
                newest.future.set_exception(self._full())
        if not len(self.queue) and not most:
            self.refused += 1
            raise self._full()

    def _full(self) -> HTTPError:
        return busy(
            503,
            "the server has no room for another answer now: try again later",
            self.expected_wait(),
        )

    def _left(self, ticket: Ticket, since: float) -> None:
        caller = ticket.caller
        caller.running -= 1
        caller.tokens += ticket.tokens
        seconds = time.monotonic() - since
        self._seconds += _SMOOTH * (seconds - self._seconds)
        self._free()

    def _free(self) -> None:
        self.running -= 1
        while self.running < self.most:
            waiter: Waiter | None = self.queue.pop()
            if waiter is None:
                return
            if not waiter.future.done():
                self.running += 1
                waiter.future.set_result(None)


def _until(limit: RateLimit, tokens: float) -> tuple[str, float]:
    """Return which of a limit's figures is used up, and for how many seconds yet."""
    now = limit.snapshot()
    found = ("requests", 1.0)
    longest = 0.0
    for name, bucket, cost in (("requests", now.requests, 1.0), ("tokens", now.tokens, tokens)):
        if bucket is None:
            continue
        # The bucket holds as many seconds' worth as the burst was given in, a whole period of the first figure.
        per_second = bucket.rate / bucket.seconds
        first = limit.requests or limit.tokens
        assert isinstance(first, Rate)
        holds = max(1.0, per_second * max(first.seconds, 1.0 / first.per_second))
        seconds = (min(cost, holds) - bucket.level) / per_second
        if seconds > longest:
            longest, found = seconds, (f"{getattr(limit, name)} {name}", seconds)
    return found[0], max(longest, 0.0)
