"""One token bucket: how much may pass now, and when the next may.

Arithmetic on numbers that the caller gives; no clock, no lock, no waiting. Source: the token bucket of Turner
(1986), with debt: whoever is larger than the bucket passes when it is full and leaves it below zero.
"""

from __future__ import annotations

from tournant.limits.pace import Pace

_CREDIT_SECONDS = 20.0
_CREDIT_LASTS = 10.0
_MARGIN_SECONDS = 0.25
_GRAIN = 1e-9


class Bucket:
    """A level that fills at the rate of its pace and is never more than `burst`.

    Over any window of ``w`` seconds no more passes than ``burst + rate * w``, and the excess of one
    request that is larger than `burst`.

    Next to the level there may be *credit*: what the provider says is left beyond the level. It flows in
    on top of the rate, so that a whole minute's allowance at the start of a run is used, but over `_CREDIT_SECONDS` and not at
    one blow, because providers count in shorter slices than they advertise.

    Args:
        pace: How fast it fills.
        burst_seconds: How many seconds' worth it holds.
        least: It holds at least so much. Default 1.
        now: Seconds on the caller's clock.
        level: What it begins with. Default: full.

    Attributes:
        level: How much may go at once; below 0 it is a debt.
        credit: How much the provider says is left beyond the level.
        drawn_at: When credit was last used.
        slack_seconds: How long, in all, nobody waited although nothing was frozen.
        frozen_seconds: How long, in all, it was frozen.
    """

    __slots__ = (
        "_credit_rate",
        "_credit_until",
        "_least",
        "_stamp",
        "burst_seconds",
        "credit",
        "drawn_at",
        "frozen_seconds",
        "level",
        "pace",
        "slack_seconds",
    )  # fmt: skip

    def __init__(
        self,
        pace: Pace,
        burst_seconds: float,
        now: float,
        level: float | None = None,
        least: float = 1.0,
    ) -> None:
        self.pace = pace
        self.burst_seconds = burst_seconds
        self._least = least
        self._stamp = now
        self.level = self.burst if level is None else level
        self.credit = 0.0
        self._credit_rate = self._credit_until = 0.0
        self.drawn_at = -1e9
        self.slack_seconds = self.frozen_seconds = 0.0

    @property
    def burst(self) -> float:
        """How much it holds at its present rate."""
        return max(self._least, self.pace.rate * self.burst_seconds)

    def refill(self, now: float, pressed: bool = False, frozen: bool = False) -> None:
        """Let in what has come since the last time.

        Args:
            now: Seconds on the caller's clock.
            pressed: Whether anyone waited.
            frozen: Whether the limit was frozen all that time: a debt is paid off, nothing is saved up, and the rate
                doesn't recover.
        """
        seconds = now - self._stamp
        if seconds <= 0:
            return
        self._stamp = now
        if frozen:
            self.frozen_seconds += seconds
            self.level = max(self.level, min(0.0, self.level + seconds * self.pace.rate))
            return
        if not pressed:
            self.slack_seconds += seconds
        before = self.pace.rate
        self.pace.advance(seconds, pressed)
        self.level += seconds * (before + self.pace.rate) / 2
        burst = self.burst
        if self.credit and now < self._credit_until:
            extra = min(self.credit, self._credit_rate * seconds, burst - self.level)
            if extra > 0:
                self.level += extra
                self.credit -= extra
                self.drawn_at = now
        self.level = min(self.level, burst)

    def wait_for(self, cost: float) -> float:
        """Return the seconds until `cost` may pass, 0 for now; as of the last `refill`."""
        lacking = min(cost, self.burst) - self.level
        if lacking <= _GRAIN * max(1.0, cost):
            return 0.0
        rate = self.pace.rate
        if self.credit:
            fast = rate + self._credit_rate
            seconds = min(self.credit / self._credit_rate, self._credit_until - self._stamp)
            if seconds > 0:
                if lacking <= fast * seconds:
                    return lacking / fast
                return seconds + (lacking - fast * seconds) / rate
        return lacking / rate

    def take(self, cost: float) -> None:
        """Let `cost` pass."""
        self.level -= cost

    def give(self, amount: float) -> None:
        """Take back what passed and was not used; a negative amount is a debit. It never holds more than its burst."""
        self.level = min(self.burst, self.level + amount)

    def drain(self) -> None:
        """Forget what was saved up, because the provider says that nothing is left. A debt stays."""
        self.level = min(self.level, 0.0)
        self.credit = 0.0

    def remaining(self, left: float, uncounted: float, limit: float, now: float) -> None:
        """Follow what the provider says is left.

        Args:
            left: What it says.
            uncounted: What may have passed here after it counted. That is held against the credit only: some of it may
                have been counted, and the level would pay twice.
            limit: The whole of the advertised limit.
            now: Seconds on the caller's clock.
        """
        self.level = min(self.level, left)
        spare = left - uncounted - self.level - _MARGIN_SECONDS * self.pace.rate
        self.credit = max(0.0, spare)
        self._credit_rate = max(limit / _CREDIT_SECONDS, self.pace.rate)
        self._credit_until = now + _CREDIT_LASTS
