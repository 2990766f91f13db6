"""What the stages measure: counts, seconds, and a histogram of call times from which percentiles come.

Call times are appended to a plain list on the hot path and folded into the histogram in bulk. Buckets grow by an eighth
of an octave, so a percentile is right to about 6 %. From 4,096 calls on, one call in eight is put into the histogram.
"""

from __future__ import annotations

from math import frexp
from typing import TYPE_CHECKING

from tournant.report import StageReport, StageSnapshot

if TYPE_CHECKING:
    from tournant.engine.gate import Gate
    from tournant.observe.events import Calls

_EVERY_CALL = 4096
_STRIDE = 8


class StageStats:
    """The running counts of one stage.

    Attributes:
        started: calls begun (for batches, rows).
        left: calls that have ended, well or not.
        items_out: items passed on.
        times: seconds of calls not folded yet.
        ends: where loop calls are recorded, when each of `times` ended.
        who: the same, for which input or batch.
        calls: the ring that keeps them.
        gate: what admits the calls, where the stage has a limit.
    """

    __slots__ = (
        "_buckets", "_folded", "busy", "calls", "ends", "failed", "gate", "items_out", "left", "limit", "name", "on",
        "retried", "started", "times", "wait_input", "wait_limit", "wait_output", "wait_slot", "who",
    )  # fmt: skip

    def __init__(self, name: str, on: str, limit: int) -> None:
        self.name = name
        self.on = on
        self.limit = limit
        self.gate: Gate | None = None
        self.started = 0
        self.left = 0
        self.items_out = 0
        self.failed = 0
        self.retried = 0
        self.busy = 0.0
        self.wait_input = 0.0
        self.wait_output = 0.0
        self.wait_slot = 0.0
        self.wait_limit = 0.0
        self.times: list[float] = []
        self.ends: list[float] = []
        self.who: list[int] = []
        self.calls: Calls
        self._buckets: dict[int, int] = {}
        self._folded = 0

    def fold(self) -> None:
        """Move the collected call times into the sums and the histogram."""
        times = self.times
        if not times:
            return
        self.times = []
        self.add_times(times)
        if self.ends:
            self.calls.pack(times, self.ends, self.who)
            self.ends.clear()
            self.who.clear()

    def add_times(self, times: list[float]) -> None:
        """Add the seconds of several calls."""
        self.busy += sum(times)
        stride = 1 if self._folded < _EVERY_CALL else _STRIDE
        self._folded += len(times)
        buckets = self._buckets
        for seconds in times[::stride] if stride > 1 else times:
            mantissa, exponent = frexp(seconds)
            bucket = exponent * 8 + int(mantissa * 16) - 8
            buckets[bucket] = buckets.get(bucket, 0) + stride

    def percentile(self, share: float) -> float:
        """Return the seconds below which `share` of the calls stayed; 0 when there were none."""
        total = sum(self._buckets.values())
        wanted, seen = share * total, 0
        for bucket in sorted(self._buckets):
            seen += self._buckets[bucket]
            if seen >= wanted:
                exponent, eighth = divmod(bucket, 8)
                return float((eighth + 8.5) / 16 * 2.0**exponent)
        return 0.0

    def snapshot(self, queued: int, running: int) -> StageSnapshot:
        """Return the stage as it stands. Changes nothing, so any thread may ask."""
        busy = self.busy + sum(self.times)
        return StageSnapshot(
            self.name, self.on, self.started, self.items_out, self.failed, self.retried, queued, running, busy,
            self._concurrency(), self.gate.describe() if self.gate is not None else "",
        )  # fmt: skip

    def _concurrency(self) -> int:
        """Return how many calls may run at once, now."""
        found = self.gate.concurrency if self.gate is not None else None
        return self.limit if found is None else min(self.limit, found)

    def report(self, duration: float) -> StageReport:
        """Return what the stage did in `duration` seconds."""
        self.fold()
        limit, gate = self._concurrency(), self.gate
        capacity = limit * duration
        return StageReport(
            name=self.name,
            on=self.on,
            items_in=self.started,
            items_out=self.items_out,
            failed=self.failed,
            retried=self.retried,
            busy=self.busy,
            wait_input=self.wait_input,
            wait_output=self.wait_output,
            wait_slot=self.wait_slot,
            wait_limit=self.wait_limit,
            p50=self.percentile(0.5),
            p90=self.percentile(0.9),
            p99=self.percentile(0.99),
            limit=limit,
            occupancy=min(1.0, self.busy / capacity) if capacity > 0 else 0.0,
            rate_share=min(1.0, gate.pressed / duration)
            if gate is not None and duration > 0
            else 0.0,
            limits=gate.describe(over=True) if gate is not None else "",
        )
