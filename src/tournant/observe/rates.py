"""From snapshots to what people ask of a run: how fast, how busy, how long still.

Pure arithmetic over the snapshots' own clock: nothing here draws, reads a clock or knows a stream.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from tournant.report import RunSnapshot, StageSnapshot

_STAGE_SECONDS = 3.0
_RUN_SECONDS = 15.0  # sinks that write in large batches finish inputs in bursts
_FIRST_ESTIMATE = 2.0


class Smoothed:
    """The speed at which a counter grows, as an exponentially weighted average.

    Without the usual bias at the start: the average is divided by the weight that it has gathered,
    so that the first value is the truth and not a fraction of it.

    Args:
        seconds: How far back it remembers; what lies so far back counts 1/e.
    """

    __slots__ = ("_count", "_seconds", "_speed", "_time", "_weight")

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._time = self._count = 0.0
        self._speed = self._weight = 0.0

    def update(self, time: float, count: float) -> float:
        """Take in what the counter shows, and return its speed per second; 0 before any time has passed.

        Args:
            time: Seconds on a clock that starts with the counter, at 0.
            count: What the counter shows.
        """
        passed = time - self._time
        if passed > 0:
            share = 1.0 - math.exp(-passed / self._seconds)
            speed = max(0.0, count - self._count) / passed
            self._speed += share * (speed - self._speed)
            self._weight += share * (1.0 - self._weight)
            self._time, self._count = time, count
        return self._speed / self._weight if self._weight else 0.0


@dataclass(frozen=True, slots=True)
class StageView:
    """One stage, as a person wants to see it.

    Attributes:
        name: The stage's name.
        done: Items that it has finished, in the unit in which they queue in front of it.
        rate: Items finished per second, lately.
        queued: Items waiting in front of it.
        running: Items that it works on.
        busy: The share of its workers' time spent working lately, 0 to 1; ``None`` for a stage without workers.
        failed: Items that failed in it for good.
        retried: Attempts beyond each item's first.
    """

    name: str
    done: int
    rate: float
    queued: int
    running: int
    busy: float | None
    failed: int
    retried: int


@dataclass(frozen=True, slots=True)
class RunView:
    """A run, as a person wants to see it.

    Attributes:
        elapsed: Seconds since its beginning.
        settled: Inputs that have ended in whatever way.
        total: Inputs that there are; ``None`` where the source does not say.
        rate: Inputs that end per second, lately.
        remaining: Estimated seconds to the end; ``None`` when nothing can be said yet.
        done: Inputs that came through.
        failed: Inputs that failed.
        skipped: Inputs that were done before, and unchanged.
        filtered: Inputs that a filter dropped.
        stages: The stages, in order.
    """

    elapsed: float
    settled: int
    total: int | None
    rate: float
    remaining: float | None
    done: int
    failed: int
    skipped: int
    filtered: int
    stages: tuple[StageView, ...]


class Tracker:
    """Turns the snapshots of one run, one after another, into views."""

    __slots__ = ("_inputs", "_stages")

    def __init__(self) -> None:
        self._inputs = Smoothed(_RUN_SECONDS)
        self._stages: dict[tuple[int, str], tuple[Smoothed, Smoothed]] = {}

    def update(self, snapshot: RunSnapshot) -> RunView:
        """Take in a snapshot, later than the one before, and return what it shows."""
        settled = snapshot.done + snapshot.failed + snapshot.skipped + snapshot.filtered
        rate = self._inputs.update(snapshot.elapsed, settled)
        total = snapshot.total
        if total is not None:
            # A source may give more than it announced.
            total = max(total, snapshot.sourced, settled)
        remaining: float | None = None
        if total is not None:
            if settled == total:
                remaining = 0.0
            elif snapshot.elapsed >= _FIRST_ESTIMATE and rate > 0:
                remaining = (total - settled) / rate
        return RunView(
            elapsed=snapshot.elapsed,
            settled=settled,
            total=total,
            rate=rate,
            remaining=remaining,
            done=snapshot.done,
            failed=snapshot.failed,
            skipped=snapshot.skipped,
            filtered=snapshot.filtered,
            stages=tuple(
                self._stage(index, stage, snapshot.elapsed)
                for index, stage in enumerate(snapshot.stages)
            ),
        )

    def _stage(self, index: int, stage: StageSnapshot, elapsed: float) -> StageView:
        speed, work = self._stages.setdefault(
            (index, stage.name), (Smoothed(_STAGE_SECONDS), Smoothed(_STAGE_SECONDS))
        )
        done = max(0, stage.items_in - stage.running - stage.failed)
        busy = work.update(elapsed, stage.busy) / max(1, stage.limit)
        return StageView(
            name=stage.name,
            done=done,
            rate=speed.update(elapsed, done),
            queued=stage.queued,
            running=stage.running,
            busy=None if stage.on == "engine" else min(1.0, busy),
            failed=stage.failed,
            retried=stage.retried,
        )


def clock(seconds: float) -> str:
    """Return a duration as ``m:ss`` or ``h:mm:ss``; beyond 99 hours in days."""
    whole = round(seconds)
    if whole >= 99 * 3600:
        return f"{whole // 86_400:,} days"
    minutes, second = divmod(whole, 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def speed(rate: float) -> str:
    """Return a rate per second with two or three digits that matter."""
    if rate >= 10:
        return f"{rate:,.0f}/s"
    if rate >= 1:
        return f"{rate:.1f}/s"
    return f"{rate:.2f}/s" if rate >= 0.005 else "0/s"
