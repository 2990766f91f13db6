"""One kind of limit, on requests or on tokens: its bucket, once there is one, and what it takes to build and correct it.

It turns events (a reply's headers, a refusal) into changes of a bucket. It has no lock and no clock of its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from tournant.limits.buckets import Bucket
from tournant.limits.figures import Rate
from tournant.limits.headers import Advertised, Window
from tournant.limits.meter import Meter
from tournant.limits.pace import Pace
from tournant.limits.snapshot import BucketSnapshot

SAME_BURST = 1.0
_BURST_SECONDS = 0.5
_BURST_SHARE = 0.25
_SLOWEST = 1 / 60
_MOST_SLACK = 0.1
_SHORTEST_BURST = 0.05


@dataclass(frozen=True, slots=True)
class _Refusal:
    """When the provider refused a call: a token bucket is empty then."""

    at: float
    passed: float
    refused: float
    slack: float
    frozen: float


class Kind:
    """One kind of limit, on requests or on tokens: the bucket, once there is one, and what is known to build it."""

    def __init__(
        self, name: str, figure: Rate | None, burst_seconds: float | None, now: float
    ) -> None:
        self.name = name
        self.figure = figure
        self.window = Window(figure.seconds if figure else 60.0, known=figure is not None)
        self.meter = Meter(now)
        self.refused = 0.0
        self.on_the_way = 0.0
        self._burst_seconds = burst_seconds
        self._last: _Refusal | None = None
        self.bucket: Bucket | None = None
        if figure is not None:
            self.bucket = self._new(Pace(figure.per_second, figure.per_second), now)

    def _new(self, pace: Pace, now: float, level: float | None = None) -> Bucket:
        seconds = self._burst_seconds
        if seconds is None:
            seconds = min(_BURST_SECONDS, self.window.seconds * _BURST_SHARE)
        return Bucket(pace, seconds, now, level)

    def advertise(self, said: Advertised, own: float, now: float) -> None:
        """Follow a reply's headers; `own` is what the call to which they belong was charged and the provider has counted."""
        self.window.learn(said)
        if said.limit is not None:
            goal = said.limit / self.window.seconds
            why = "advertised by the provider"
            if self.figure is not None and self.figure.per_second <= goal:
                goal, why = self.figure.per_second, "configured"
            if self.bucket is None:
                self.bucket = self._new(Pace(goal, goal, why), now)
            else:
                self.bucket.pace.aim(goal, why)
        bucket = self.bucket
        if said.remaining is not None and bucket is not None:
            # Of what is on the way it may have counted anything from all to nothing.
            uncounted = max(0.0, self.on_the_way - own)
            whole = said.limit or bucket.pace.rate * self.window.seconds
            bucket.remaining(said.remaining, uncounted, whole, now)
            if self._burst_seconds is not None:
                bucket.credit = 0.0  # the user said how much may go at once

    def discover(self, now: float) -> None:
        """Begin with a bucket, because a call was refused: what went through lately is about what is allowed."""
        if self.bucket is None:
            rate = max(_SLOWEST, self.meter.per_second(now))
            self.bucket = self._new(Pace(rate, why="discovered", floor=_SLOWEST), now, level=0.0)

    def step_down(self, at: float, passed: float, now: float) -> None:
        """Go slower after a refusal of a call that went at `at`, when `passed` had passed before it."""
        bucket = self.bucket
        assert bucket is not None
        last = self._last
        slack, frozen = bucket.slack_seconds, bucket.frozen_seconds
        self._last = _Refusal(at, passed, self.refused, slack, frozen)
        accepted, doubt = (None, 0.0) if last is None else _accepted(last, self._last)
        if now - bucket.drawn_at <= SAME_BURST:
            return  # it went faster than its rate, on credit, and that has ended
        if self._burst_seconds is None and (accepted is None or accepted > 0.9 * bucket.pace.rate):
            # Perhaps not too many in all but too many at once.
            bucket.burst_seconds = max(_SHORTEST_BURST, bucket.burst_seconds / 2)
        bucket.pace.step_down(accepted, doubt)

    def use(self, now: float) -> float:
        """Return which share of the bucket's rate was used lately."""
        return self.meter.per_second(now) / self.bucket.pace.rate if self.bucket else 0.0

    def snapshot(self) -> BucketSnapshot | None:
        """Return how it stands, or ``None`` while nothing is known."""
        bucket = self.bucket
        if bucket is None:
            return None
        pace, seconds = bucket.pace, self.window.seconds
        goal = None if pace.goal == math.inf else pace.goal * seconds
        return BucketSnapshot(pace.rate * seconds, goal, seconds, bucket.level, pace.why)


def _accepted(last: _Refusal, this: _Refusal) -> tuple[float | None, float]:
    """Return what the provider let pass per second between two refusals, if it was asked for all it would give, and the doubt.

    While everyone was frozen its bucket filled, or was full already: the truth lies between counting that time and
    leaving it out.
    """
    seconds = this.at - last.at
    if seconds <= 0 or this.slack - last.slack > _MOST_SLACK * seconds:
        return None, 0.0
    passed = this.passed - last.passed - (this.refused - last.refused)
    if passed <= 0:
        return None, 0.0
    doubt = min(0.9, (this.frozen - last.frozen) / seconds)
    return passed / seconds / math.sqrt(1.0 - doubt), doubt
