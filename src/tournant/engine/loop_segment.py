"""Loop segments: coroutine stages run by long-lived worker coroutines that pull from their channel.

A segment of several fused stages has as many workers as the stages have permits together. Each stage's own concurrency
is kept by a gate, which is two counters while the stage is not full. Workers are started as work appears.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from time import perf_counter
from typing import TYPE_CHECKING, Any

from tournant.engine.calls import Call, Deadline, children_of, direct, timed
from tournant.engine.channel import Attempt
from tournant.engine.lineage import ARRIVED, DROPPED, REFUSED, Item
from tournant.engine.segment import Segment
from tournant.engine.stats import StageStats
from tournant.errors import note
from tournant.pool.steps import WithState, plain
from tournant.sizes import size_of

if TYPE_CHECKING:
    from tournant.engine.budget import Budget
    from tournant.engine.run import Run
    from tournant.stages import Stage

#: Calls at once while nobody knows by how much they grow, where memory is limited.
UNKNOWN = 8

_MAP, _FILTER, _TAP, _SINK, _FLAT, _BATCH = range(6)
_CODES = {
    "map": _MAP,
    "filter": _FILTER,
    "tap": _TAP,
    "for_each": _SINK,
    "flat_map": _FLAT,
    "map_batches": _BATCH,
}


class _Step:
    """One stage inside a loop segment, ready to call.

    Attributes:
        permits: calls at once.
        limit: calls in progress from which on a worker has to ask at the gate: all `permits`, or, where memory has a say,
            none.
        growth: bytes by which a call makes its item grow, smoothed; ``None`` while nobody knows.
    """

    __slots__ = ("call", "code", "growth", "limit", "permits", "stage", "stats", "waiters")

    def __init__(self, stage: Stage, stats: Any, call: Call, limit: int) -> None:
        self.stage = stage
        self.code = _CODES[stage.kind]
        self.stats = stats
        self.call = call
        self.limit = self.permits = limit
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


class LoopSegment(Segment):
    """Fused loop stages and their workers."""

    on = "loop"

    def __init__(self, run: Run, stages: list[Stage]) -> None:
        limits = [1 if run.inline else stage.concurrency for stage in stages]
        super().__init__(run, stages, limits)
        if run.inline:
            for stats, stage in zip(self.stats, stages, strict=True):
                stats.on = stage.on
        self.limits = limits
        self.max_workers = 1 if run.inline else sum(limits)
        self.steps: list[_Step] = []
        self.workers = 0
        self.active = 0
        self.returning = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._timers: set[asyncio.TimerHandle] = set()
        self._states: list[tuple[Callable[[Any], None], Any]] = []

    def capacity(self) -> int:
        """Hold twice what the workers take at once."""
        size = self.stages[0].size or 1
        return max(16, min(1024, 2 * self.max_workers), size)

    def start(self) -> None:
        """Build the steps and the first worker."""
        for stage, stats, limit in zip(self.stages, self.stats, self.limits, strict=True):
            step = _Step(stage, stats, self._callable(stage), limit)
            if self.run.budget is not None and stage.kind == "map":
                step.limit, step.permits = 0, min(limit, UNKNOWN)
            self.steps.append(step)
        self._spawn()

    def idle(self) -> bool:
        """Tell whether no call is in progress and no retry is due."""
        return self.active == 0 and self.returning == 0

    def cancel(self) -> None:
        """Cancel the workers and forget the retries."""
        self.halt()
        for task in self._tasks:
            task.cancel()

    def halt(self) -> None:
        """Start nothing new: queued items and waiting retries are given up."""
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        self.returning = 0
        for step in self.steps:
            step.leave_all()
        super().halt()
        self._maybe_done()

    def _callable(self, stage: Stage) -> Call:
        fn = stage.fn
        assert fn is not None
        if stage.state is not None:
            try:
                state = stage.state.factory()
            except Exception as error:
                note(
                    error, f"raised while the state=PerWorker(...) of stage {stage.name} was built"
                )
                raise
            if stage.state.close is not None:
                self._states.append((stage.state.close, state))
            fn = WithState(fn, state)
        call: Any = fn
        if stage.kind == "flat_map":
            return call  # type: ignore[no-any-return]
        if not stage.is_async:
            call = direct(fn)
        if stage.timeout is not None:
            call = timed(call, stage.timeout, stage.name)
        return call  # type: ignore[no-any-return]

    def _spawn(self) -> None:
        self.workers += 1
        task = self.run.spawn(self._work(), f"tournant {self.stages[0].name} {self.workers}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _more(self) -> None:
        """There is more than this worker has taken: wake another, or start one."""
        inbox = self.inbox
        if inbox.readers_idle:
            inbox.pass_on()
        elif self.workers < self.max_workers:
            self._spawn()

    def _worker_left(self) -> None:
        self.workers -= 1
        self._maybe_done()

    def _maybe_done(self) -> None:
        inbox = self.inbox
        if (
            inbox.closed
            and not self.workers
            and not self.returning
            and not inbox.items
            and not inbox.again
        ):
            states, self._states = self._states, []
            for close, state in states:
                try:
                    close(state)
                except Exception as error:
                    self.run.warnings.append(
                        f"closing the PerWorker state of stage {self.stages[0].name} raised {error!r}"
                    )
            self.finish()

    async def _work(self) -> None:
        run, inbox, out, steps = self.run, self.inbox, self.out, self.steps
        items, again = inbox.items, inbox.again
        count, clock = len(steps), perf_counter
        budget = run.budget
        try:
            while True:
                attempt: Attempt | None = None
                if again:
                    attempt = again.popleft()
                    item, value, i = attempt.item, attempt.value, attempt.step
                    assert item is not None
                elif items:
                    item = items.popleft()
                    value, i = item.value, 0
                    if (inbox.writers or inbox.room_wanted) and len(items) <= inbox.low:
                        inbox.removed()
                else:
                    if inbox.closed:
                        return
                    began = clock()
                    await inbox.wait_items()
                    self.stats[0].wait_input += clock() - began
                    continue
                if items or again:
                    self._more()
                self.active += 1
                now = clock()
                try:
                    while i < count:
                        step = steps[i]
                        stats = step.stats
                        before = item.size
                        if stats.started - stats.left >= step.limit:
                            await self._enter(step, item)
                            if run.halted:
                                item = None
                                break
                            now = clock()
                        stats.started += 1
                        code = step.code
                        if code == _FLAT:
                            await self._fan_out(step, item, value, attempt)
                            item = None
                            break
                        result = await step.call(value)
                        stats.left += 1
                        then = clock()
                        stats.times.append(then - now)
                        now = then
                        if step.waiters:
                            step.leave()
                        if code == _MAP:
                            value = result
                            if budget is not None:
                                self._grown(step, item, before, value, budget)
                        elif code == _FILTER and not result:
                            run.end_item(item, DROPPED if item.pos else DROPPED | REFUSED)
                            item = None
                            break
                        stats.items_out += 1
                        i += 1
                except BaseException as error:
                    if interrupts(error, run):
                        raise
                    step.stats.left += 1
                    if step.waiters:
                        step.leave()
                    assert item is not None
                    tried = attempt.count if attempt is not None and attempt.step == i else 0
                    await self._failed(item, value, i, tried + 1, plain(error))
                    item = None
                finally:
                    self.active -= 1
                if item is None:
                    continue
                if out is None:
                    if run.collector is not None and steps[-1].code != _SINK:
                        run.collector(value)
                    run.outputs += 1
                    if budget is not None:
                        run.end_item(item, ARRIVED)
                    else:
                        item.origin.end(ARRIVED, run)
                    continue
                item.value = value
                if len(out.items) >= out.capacity:
                    began = clock()
                    await out.wait_room()
                    self.stats[-1].wait_output += clock() - began
                if not run.halted:
                    out.items.append(item)
                    out.added()
        finally:
            self._worker_left()

    async def _enter(self, step: _Step, item: Item) -> None:
        """Wait for a permit, and for the memory that the call is expected to take: it is counted from now on."""
        run, budget, stats = self.run, self.run.budget, step.stats
        self.active -= 1
        try:
            while not run.halted:
                if stats.started - stats.left >= step.permits:
                    await step.enter(run)
                growth = int(step.growth or 0)
                if budget is None or not growth:
                    break
                if budget.passes(growth, item.origin):
                    budget.add(growth)
                    item.size += growth
                    break
                began = perf_counter()
                await budget.room(growth, item.origin)
                stats.wait_output += perf_counter() - began
        finally:
            self.active += 1

    def _grown(self, step: _Step, item: Item, before: int, value: Any, budget: Budget) -> None:
        """Count what a call has made of an item that had `before` bytes."""
        size = size_of(value)
        budget.add(size - item.size)
        item.size = size
        step.learn(size - before)

    async def _fan_out(self, step: _Step, item: Item, value: Any, attempt: Attempt | None) -> None:
        """Run a flat_map on one item and pass its children on as they are produced."""
        stage, stats, run = step.stage, step.stats, self.run
        hold: list[Any] | None = [] if stage.retry is not None else None
        origin, number = item.origin, 0
        began, paused = perf_counter(), 0.0
        deadline = Deadline(stage.name, stage.timeout)
        async with deadline, children_of(step.call, value, stage.is_async) as children:
            async for child in children:
                if hold is not None:
                    hold.append(child)
                    continue
                before = perf_counter()
                await self._pass_child(stats, Item(child, origin, (*item.pos, number)), deadline)
                paused += perf_counter() - before
                number += 1
                if run.halted:
                    break
        for number, child in enumerate(hold or ()):
            await self._pass_child(stats, Item(child, origin, (*item.pos, number)), deadline)
        stats.left += 1
        stats.times.append(perf_counter() - began - paused)
        if step.waiters:
            step.leave()
        if not run.halted:
            run.end_item(item, 0)

    async def _pass_child(self, stats: Any, child: Item, deadline: Deadline) -> None:
        run, out = self.run, self.out
        if run.budget is not None:
            child.size = size_of(child.value)
            if not run.budget.passes(child.size, child.origin):
                await self._held_up(run.budget.child(child.size, child.origin), deadline)
            run.budget.add(child.size)
        child.origin.pending += 1
        stats.items_out += 1
        if out is None:
            run.arrive(child)
            return
        if len(out.items) >= out.capacity:
            await self._held_up(out.wait_room(), deadline)
        if not run.halted:
            out.items.append(child)
            out.added()

    async def _held_up(self, room: Any, deadline: Deadline) -> None:
        """Wait for room: no work, and no part of the attempt's time."""
        began = perf_counter()
        deadline.stop()
        self.active -= 1
        try:
            await room
        finally:
            self.active += 1
            deadline.go_on()
            self.stats[-1].wait_output += perf_counter() - began

    async def _failed(
        self, item: Item, value: Any, step: int, count: int, error: Exception
    ) -> None:
        stage = self.stages[step]
        if self.run.budget is not None:
            self.run.change(item, value)
        if (
            stage.retry is None
            or self.run.halted
            or not self.run.failures.wants_retry(stage, error, count)
        ):
            self.gone(item, None, step, error, count)
            return
        await self._again(Attempt(item, value=value, step=step, count=count), stage, count, 1)

    async def _again(self, attempt: Attempt, stage: Stage, count: int, rows: int) -> None:
        """Bring `attempt` back after its backoff, which holds no worker."""
        assert stage.retry is not None
        stats = self.stats[attempt.step]
        stats.retried += rows
        self.not_begun(stats, rows)
        delay = stage.retry.wait(count)
        stats.wait_limit += delay
        if self.run.inline:
            # Inline keeps the order: the next item waits for this one.
            await asyncio.sleep(delay)
            self.inbox.again.appendleft(attempt)
            return
        self.returning += 1

        def due() -> None:
            self._timers.discard(timer)
            self.returning -= 1
            self.inbox.again.append(attempt)
            if self.inbox.readers_idle:
                self.inbox.added()
            elif self.workers < self.max_workers:
                self._spawn()

        timer = self.run.loop.call_later(delay, due)
        self._timers.add(timer)

    @staticmethod
    def not_begun(stats: StageStats, rows: int) -> None:
        """Take items that run again out of the counts: each is counted once, however often it is tried."""
        stats.started -= rows
        stats.left -= rows


def interrupts(error: BaseException, run: Run) -> bool:
    """Tell whether `error` is no failure of a stage: somebody has cancelled the task, or pressed Ctrl-C in an inline run."""
    if run.inline and isinstance(error, KeyboardInterrupt):
        return True
    if not isinstance(error, asyncio.CancelledError):
        return False
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
