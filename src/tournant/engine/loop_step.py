"""One stage inside a loop segment: what to call, and how many calls may be under way."""

from __future__ import annotations

import asyncio
from collections import deque
from time import perf_counter
from typing import TYPE_CHECKING, Any

from tournant.engine.calls import Call

if TYPE_CHECKING:
    from tournant.engine.gate import Gate
    from tournant.engine.run import Run
    from tournant.stages import Stage

#: Calls at once while nobody knows by how much they grow, where memory is limited.
UNKNOWN = 8

MAP, FILTER, TAP, SINK, FLAT, BATCH = range(6)
_CODES = {
    "map": MAP,
    "filter": FILTER,
    "tap": TAP,
    "for_each": SINK,
    "flat_map": FLAT,
    "map_batches": BATCH,
}


class Step:
    """One stage inside a loop segment, ready to call.

    Attributes:
        permits: calls at once.
        limit: calls in progress from which on a worker has to ask for leave: all `permits`, or, where memory or a gate
            has a say, none.
        gate: what admits the calls of a stage with a limit; otherwise ``None``.
        growth: bytes by which a call makes its item grow, smoothed; ``None`` while nobody knows.
    """

    __slots__ = ("call", "code", "gate", "growth", "limit", "permits", "stage", "stats", "waiters")

    def __init__(self, stage: Stage, stats: Any, call: Call, limit: int, gate: Gate | None) -> None:
        self.stage = stage
        self.code = _CODES[stage.kind]
        self.stats = stats
        self.call = call
        self.gate = gate
        self.permits = limit
        self.limit = limit if gate is None else 0
        self.growth: float | None = None
        self.waiters: deque[asyncio.Future[None]] = deque()

    def learn(self, growth: int) -> None:
        """Remember by how much a call made its item grow."""
        if self.growth is None:
            self.growth = max(0.0, float(growth))
            self.permits = self.stage.concurrency
            for _ in range(len(self.waiters)):
                self.leave()
        else:
            self.growth = max(0.0, float(growth), 0.8 * self.growth + 0.2 * growth)

    async def enter(self, run: Run) -> None:
        """Wait until the stage has a permit, or the run is being stopped."""
        began = perf_counter()
        stats = self.stats
        while stats.started - stats.left >= self.permits and not run.halted:
            waiter = asyncio.get_running_loop().create_future()
            self.waiters.append(waiter)
            await waiter
        stats.wait_limit += perf_counter() - began

    def leave(self) -> None:
        """Let the next in, after a permit came free."""
        while self.waiters:
            waiter = self.waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return

    def leave_all(self) -> None:
        """Let everybody look again: the run is being stopped."""
        while self.waiters:
            self.leave()
