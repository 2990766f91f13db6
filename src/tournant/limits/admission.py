"""Both loops around one call: a place in the rate and a place in the concurrency, neither kept while waiting for the other.

Taking them one after the other goes wrong either way round: a slot that waits for the rate is idle and its wait looks like
latency; a rate's permit that waits for a slot is spent later than it was counted, together with others.

A 429 is answered once: by the rate where there is one, which freezes and slows down. It says nothing about how many calls the
provider bears at once, and a concurrency that fell with it would take long to find back. Without a rate the concurrency
answers.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Any

from tournant.limits.adaptive import Adaptive, Slot
from tournant.limits.figures import InvalidLimit
from tournant.limits.headers import Headers
from tournant.limits.rate import RateLimit, Reservation

#: Seconds that a place in the rate is kept for who has no slot yet. Giving it back at once would have two who hold one each
#: exchange them for ever.
_MOMENT = 0.1
_FREELY: AbstractContextManager[Any] = nullcontext()


class Admission:
    """One call's leave to go, from `admit`. Use it once, with ``async with``.

    An engine may take it apart: `try_enter`, `enter` where that says no, and then `close` or `release`.

    Attributes:
        reservation: Its place in the rate, or ``None`` without a limit.
        slot: Its place in the concurrency, or ``None`` without one.
    """

    __slots__ = ("_concurrency", "_limit", "_tokens", "_used", "reservation", "slot")

    def __init__(
        self, limit: RateLimit | None, concurrency: Adaptive | None, tokens: float
    ) -> None:
        self._limit = limit
        self._concurrency = concurrency
        self._tokens = tokens
        self._used = False
        self.reservation: Reservation | None = None
        self.slot: Slot | None = None

    async def __aenter__(self) -> Admission:
        if not self.try_enter():
            await self.enter()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close(error)

    def try_enter(self) -> bool:
        """Go, if the call can go now and nobody is before it. ``False``: nothing is held, and `enter` waits."""
        if self._used:
            raise InvalidLimit("an admission is for one call: ask admit(...) for another")
        self._used = True
        limit, concurrency = self._limit, self._concurrency
        if concurrency is not None:
            self.slot = concurrency.try_slot()
            if self.slot is None:
                return False
        if limit is not None:
            self.reservation = limit.try_reserve(self._tokens)
            if self.reservation is None:
                self._leave_slot()
                return False
        return True

    async def enter(self, rate: AbstractContextManager[Any] = _FREELY) -> None:
        """Wait until the call may go, after `try_enter` has said no. Cancelled, nothing is held.

        Args:
            rate: Entered while it waits for the rate, for whoever keeps count of that.
        """
        limit, concurrency = self._limit, self._concurrency
        while True:
            if concurrency is not None:
                self.slot = concurrency.try_slot() or await self._wait_for_slot(concurrency)
            if limit is None:
                return
            if self.reservation is None or not self.reservation.held:
                self.reservation = limit.try_reserve(self._tokens)
            if self.reservation is not None:
                return
            self._leave_slot()
            with rate:
                self.reservation = await limit.reserve(self._tokens).__aenter__()
            if concurrency is None:
                return

    async def _wait_for_slot(self, concurrency: Adaptive) -> Slot:
        """Wait for a slot. A place in the rate is kept for a moment and then given back, or it would be spent late."""
        reservation = self.reservation
        if reservation is None or self._limit is None:
            return await concurrency.slot().__aenter__()
        clock = self._limit.clock
        timer = clock.call_at(clock.now() + _MOMENT, reservation.release)
        try:
            return await concurrency.slot().__aenter__()
        except BaseException:
            reservation.release()
            raise
        finally:
            timer.cancel()

    def close(self, error: BaseException | None = None) -> None:
        """End the call; `error` is what it raised. Twice is once, from any thread."""
        try:
            if self.reservation is not None:
                self.reservation.close(error)
        finally:
            if self.slot is not None:
                if self.reservation is not None and self.reservation.refused:
                    self.slot.failed()  # the rate has answered for it
                self.slot.close(error)

    def release(self) -> None:
        """Give everything back, because the call never left."""
        if self.reservation is not None:
            self.reservation.release()
        self._leave_slot()

    def excuse(self, seconds: float) -> None:
        """Leave `seconds` out of the call's latency: the caller was kept from reading on, and the provider is not to blame."""
        if self.slot is not None:
            self.slot.excuse(seconds)

    def settle(self, tokens: float) -> None:
        """Charge what the call really used; see `Reservation.settle`."""
        if self.reservation is not None:
            self.reservation.settle(tokens)

    def spend(self, tokens: float) -> None:
        """Charge what one of several requests used; see `Reservation.spend`."""
        if self.reservation is not None:
            self.reservation.spend(tokens)

    def observe(self, headers: Headers) -> None:
        """Take in the headers of the call's reply; see `RateLimit.observe`."""
        if self.reservation is not None:
            self.reservation.observe(headers)

    def check(self, outcome: object) -> bool:
        """Judge the call's reply or exception, and act on a throttle; see `Reservation.check`."""
        return self.reservation is not None and self.reservation.check(outcome)

    def throttled(self, retry_after: float | None = None) -> None:
        """Say that the call was refused for coming too often."""
        if self.reservation is not None:
            self.reservation.throttled(retry_after)
        elif self.slot is not None:
            self.slot.throttled()

    def timed_out(self) -> None:
        """Say that the call took too long and was given up."""
        if self.slot is not None:
            self.slot.timed_out()

    def _leave_slot(self) -> None:
        if self.slot is not None:
            self.slot.give_back()


def admit(
    limit: RateLimit | None = None, concurrency: Adaptive | None = None, tokens: float = 0
) -> Admission:
    """Return leave for one call under `limit` and `concurrency`, either of which may be missing.

    ::

        async with admit(limit, adaptive, tokens=1_200) as call:
            reply = await post()
            call.observe(reply.headers)
            call.settle(reply.usage.total_tokens)

    Args:
        limit: The rate that it counts in.
        concurrency: The concurrency that it counts in.
        tokens: How many tokens it will use, as an estimate.
    """
    return Admission(limit, concurrency, tokens)
