"""How fast one limit lets pass, now: down at once when the provider refuses, up again step by step.

Additive increase, multiplicative decrease (Chiu and Jain, 1989), with the memory of CUBIC (RFC 9438): up to where the
provider refused last time the way is short, around that place it goes slowly, beyond it faster again.
Nothing here reads a clock or counts calls.
"""

from __future__ import annotations

import math

STEP_DOWN = 0.7
NEAR = 0.97
PAST = 1.05
FAST = 0.1
CREEP = 0.002
PROBE = 0.03
HASTE = 0.1
_LONGEST = 30.0
_LEAST_SHARE = 0.01


class Pace:
    """A rate per second that follows what the provider allows.

    Below `NEAR` of what the provider allowed when it last refused, the rate grows by `FAST` of it a second; from there to
    `PAST` by `CREEP`; beyond that the memory is stale, and it grows by `PROBE`, and by `HASTE` of how far beyond it is. Where
    nothing was learned it grows by `FAST` of the goal. It never passes the goal.

    Args:
        rate: Per second, to begin with.
        goal: Per second; the configured or advertised limit, or infinity where there is none.
        why: Where `rate` comes from, for people.
        floor: Per second; the rate never falls lower. Default: a hundredth of `rate`.
    """

    __slots__ = ("_creep", "_floor", "_origin", "ceiling", "goal", "rate")

    def __init__(
        self, rate: float, goal: float = math.inf, why: str = "configured", floor: float = 0.0
    ) -> None:
        self.rate = rate
        self.goal = goal
        self.ceiling: float | None = None if goal < math.inf else rate
        self._origin = why
        self._creep = CREEP
        self._floor = min(rate, max(floor, rate * _LEAST_SHARE))

    def step_down(self, accepted: float | None = None, doubt: float = 0.0) -> None:
        """Go slower, because the provider refused a call.

        Args:
            accepted: Per second; what the provider let pass between its last two refusals, where that is known. A
                token bucket is empty at both, so this is its rate, whatever its size.
            doubt: How far `accepted` may be off, from 0 to 1. The rate is felt out faster then.
        """
        before = self.rate
        self._creep = CREEP * (1.0 + 10.0 * doubt)
        if accepted is not None:
            self.ceiling = max(self._floor, min(before, accepted))
        elif self.ceiling is not None:
            self.ceiling = min(self.ceiling, before)
        self.rate = before * STEP_DOWN
        if self.ceiling is not None:
            self.rate = min(self.rate, self.ceiling * 0.9)
        self.rate = max(min(self._floor, before), self.rate)

    def aim(self, goal: float, why: str) -> None:
        """Take `goal` per second for the limit from now on; a rate that stood at the old one goes with it."""
        if math.isclose(goal, self.goal, rel_tol=1e-6):
            return
        stood = self.rate >= self.goal
        self.goal = goal
        self.ceiling = None
        self._origin = why
        self._floor = min(goal, max(1e-9, goal * _LEAST_SHARE))
        if stood or self.rate > goal:
            self.rate = goal

    def advance(self, seconds: float, pressed: bool) -> None:
        """Recover for `seconds`.

        Args:
            seconds: How long since the last time.
            pressed: Whether someone waited. Where nobody did, nothing was learned about
                what the provider would bear, and the rate stays below the place where it refused.
        """
        while seconds > 0 and self.rate < self.goal:
            ceiling = self.ceiling
            if ceiling is None:
                speed, edge = FAST * self.goal, self.goal
            elif self.rate < NEAR * ceiling:
                speed, edge = FAST * ceiling, NEAR * ceiling
            elif not pressed:
                return
            elif self.rate < PAST * ceiling:
                speed, edge = self._creep * ceiling, PAST * ceiling
            else:
                beyond = PAST * ceiling
                lead = PROBE * ceiling / HASTE
                grown = (self.rate - beyond + lead) * math.exp(HASTE * min(seconds, _LONGEST))
                self.rate = min(self.goal, beyond + grown - lead)
                return
            edge = min(edge, self.goal)
            if speed * seconds < edge - self.rate:
                self.rate += speed * seconds
                return
            seconds -= (edge - self.rate) / speed
            self.rate = edge

    @property
    def why(self) -> str:
        """Why the rate is what it is, in a few words."""
        if self.rate >= self.goal:
            return self._origin
        if self.ceiling is None or self.rate < NEAR * self.ceiling:
            return "stepped down after a 429, recovering"
        if self.rate < PAST * self.ceiling:
            return "near the rate at which the last 429 came"
        return "looking for the limit"
