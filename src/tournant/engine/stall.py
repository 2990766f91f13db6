"""What nothing else wakes up for: time limits, results behind a long item, and runs in which everybody waits for somebody.

A run can stand still though there is work: the source waits for a window or for memory, a batch waits for more items, and the
results of a fan-out wait for memory that is only freed when their input is complete. When nothing has moved between two looks,
partial batches go, and if there are none, one input gets its way past the memory limit. A standstill that lasts is told, with
what waits for what, by `tournant.engine.standstill`.
"""

from __future__ import annotations

import asyncio
import sys
from time import perf_counter
from typing import TYPE_CHECKING

from tournant.engine.noting import look
from tournant.engine.standstill import Standstill

if TYPE_CHECKING:
    from tournant.engine.run import Run

#: Seconds between two looks.
TICK = 0.05
#: The same when somebody has begun to wait for memory; doubled at each look that finds nothing to do.
_SOON = 0.001


class Lookout:
    """Looks after one run, every few dozen milliseconds."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._seen = -1
        self._delay = TICK
        self._grace = 1
        #: Bytes counted when somebody was last favoured.
        self._total = sys.maxsize
        self._timer: asyncio.TimerHandle | None = None
        self._standstill: Standstill | None = None

    def start(self) -> None:
        """Begin to look."""
        self._standstill = Standstill(self._run)
        self._run.events.start()
        look(self._run, perf_counter())
        if self._run.budget is not None:
            self._run.budget.on_wait = self.soon
        self._timer = self._run.loop.call_later(self._delay, self._look)

    def stop(self) -> None:
        """End it, after a last look at what is recorded."""
        look(self._run, perf_counter())
        self._run.events.stop()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._standstill is not None:
            self._standstill.look(perf_counter(), not self._run.cancelled)

    def soon(self) -> None:
        """Somebody waits for memory: look more often."""
        if self._timer is not None and self._delay > 4 * _SOON:
            self._timer.cancel()
            self._delay = _SOON
            self._timer = self._run.loop.call_later(self._delay, self._look)

    def _look(self) -> None:
        run, now = self._run, perf_counter()
        for segment in run.segments:
            segment.tick(now)
        look(run, now)
        seen = run.source.sourced + run.outputs
        for segment in run.segments:
            for stats in segment.stats:
                seen += stats.started + stats.left + stats.items_out
        consumer = run.consuming or (run.results is not None and bool(run.results.items))
        assert self._standstill is not None
        self._standstill.look(now, seen != self._seen or consumer)
        if seen == self._seen and self._stands_still() and self._let_go():
            self._delay = _SOON
        else:
            self._delay = min(TICK, 2 * self._delay)
        self._seen = seen
        self._timer = run.loop.call_later(self._delay, self._look)

    def _stands_still(self) -> bool:
        run = self._run
        if run.halted or run.consuming or run.wants_slot:
            return False
        if run.results is not None and run.results.items:
            return False
        return all(segment.idle() for segment in run.segments)

    def _let_go(self) -> bool:
        """Let something go on; tell whether there was anything."""
        run = self._run
        budget = run.budget
        if run.source.waiting or (budget is not None and self._memory_wanted()):
            # Every partial batch at once: each may be what another waits for.
            relieved = [segment.relieve() for segment in reversed(run.segments)]
            if any(relieved):
                return True
            if budget is not None:
                # The more of them, the longer it has not helped: what a gather holds is freed only when it has everything.
                self._grace = 2 * self._grace if budget.total >= self._total else 1
                self._total = budget.total
                return (
                    budget.favour(self._grace)
                    or any(segment.favour(self._grace) for segment in run.pool_segments)
                    or budget.force_input()
                )
        return False

    def _memory_wanted(self) -> bool:
        budget = self._run.budget
        assert budget is not None
        return budget.waiting or any(segment.wants_memory() for segment in self._run.pool_segments)
