"""Both loops around one call: a place in the rate and a place in the concurrency, neither held while waiting for the other.

Taking them one after the other goes wrong either way round: a slot that waits for the rate is idle and its wait looks like
latency; a rate's permit that waits for a slot is spent later than it was counted, together with others.
"""

from __future__ import annotations

from types import TracebackType

from tournant.limits.adaptive import Adaptive, Slot
from tournant.limits.figures import InvalidLimit
from tournant.limits.headers import Headers
from tournant.limits.rate import RateLimit, Reservation


class Admission:
    """One call's leave to go, from `admit`. Use it once, with ``async with``.

    Attributes:
        reservation: Its place in the rate, or ``None`` without a limit.
        slot: Its place in the concurrency, or ``None`` without one.
    """

    __slots__ = ("_concurrency", "_limit", "_tokens", "reservation", "slot")

    def __init__(
        self, limit: RateLimit | None, concurrency: Adaptive | None, tokens: float
    ) -> None:
        self._limit = limit
        self._concurrency = concurrency
        self._tokens = tokens
        self.reservation: Reservation | None = None
        self.slot: Slot | None = None

    async def __aenter__(self) -> Admission:
        if self.reservation is not None or self.slot is not None:
            raise InvalidLimit("an admission is for one call: ask admit(...) for another")
        limit, concurrency = self._limit, self._concurrency
        if concurrency is not None:
            self.slot = await concurrency.slot().__aenter__()
        if limit is not None:
            self.reservation = limit.try_reserve(self._tokens)
            if self.reservation is None:
                if self.slot is not None:
                    self.slot.give_back()
                self.reservation = await limit.reserve(self._tokens).__aenter__()
                if concurrency is not None:
                    try:
                        self.slot = await concurrency.slot().__aenter__()
                    except BaseException:
                        self.reservation.release()
                        raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if self.reservation is not None:
                self.reservation.close(error)
        finally:
            if self.slot is not None:
                if self.reservation is not None and self.reservation.refused:
                    self.slot.throttled()
                await self.slot.__aexit__(kind, error, trace)

    def settle(self, tokens: float) -> None:
        """Charge what the call really used; see `Reservation.settle`."""
        if self.reservation is not None:
            self.reservation.settle(tokens)

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
