"""Loop segments: coroutine stages run by long-lived worker coroutines that pull from their channel.

A segment of several fused stages has as many workers as the stages have permits together. Each stage's own concurrency
is kept by a gate, which is two counters while the stage is not full. Workers are started as work appears.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from time import perf_counter
from typing import TYPE_CHECKING, Any

from tournant.engine.calls import Call, Deadline, children_of, direct, timed
from tournant.engine.channel import Attempt
from tournant.engine.failures import backoff
from tournant.engine.gate import Gate, admitted
from tournant.engine.lineage import ARRIVED, DROPPED, REFUSED, Item
from tournant.engine.loop_step import BATCH, FILTER, FLAT, MAP, SINK, UNKNOWN, Step
from tournant.engine.segment import FOLD, Segment
from tournant.engine.stats import StageStats
from tournant.engine.strays import Strays
from tournant.errors import note
from tournant.limits.current import admission
from tournant.observe.recording import CANCELLED, FAILED, RETRIED
from tournant.pool.leftovers import FINE, check_result
from tournant.pool.steps import WithState, plain
from tournant.sizes import size_of

if TYPE_CHECKING:
    from tournant.engine.budget import Budget
    from tournant.engine.run import Run
    from tournant.stages import Stage

_unlimited = contextlib.nullcontext()


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
        self.steps: list[Step] = []
        self.workers = 0
        self.active = 0
        self.returning = 0
        self.fresh = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._timers: set[asyncio.TimerHandle] = set()
        self._halting: asyncio.Future[None] | None = None
        self._states: list[tuple[Callable[[Any], None], Any]] = []

    def capacity(self) -> int:
        """Hold twice what the workers take at once."""
        size = self.stages[0].size or 1
        return max(16, min(1024, 2 * self.max_workers), size)

    def start(self) -> None:
        """Build the steps and the first worker."""
        for stage, stats, limit in zip(self.stages, self.stats, self.limits, strict=True):
            gate = Gate(self.run, stage, stats) if stage.limited else None
            step = Step(stage, stats, self._callable(stage, gate), limit, gate)
            if self.run.budget is not None and stage.kind == "map":
                step.limit, step.permits = 0, min(limit, UNKNOWN)
            self.steps.append(step)
        self._spawn()

    def idle(self) -> bool:
        """Tell whether no call is in progress and no retry is due."""
        return (
            self.active == 0
            and self.returning == 0
            and not any(step.gate is not None and step.gate.expects() for step in self.steps)
        )

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
        if self._halting is not None and not self._halting.done():
            self._halting.set_result(None)
        for step in self.steps:
            step.leave_all()
            if step.gate is not None:
                step.gate.send_away()
        super().halt()
        self._maybe_done()

    def _callable(self, stage: Stage, gate: Gate | None) -> Call:
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
        if gate is not None:
            call = admitted(call, gate)
        return call  # type: ignore[no-any-return]

    def _spawn(self) -> None:
        self.workers += 1
        self.fresh = True
        self.inbox.on_short = self._short if self.workers < self.max_workers else None
        task = self.run.spawn(self._work(), f"tournant {self.stages[0].name} {self.workers}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _short(self) -> None:
        """Something came while every worker is in a call: start another, unless one is about to look."""
        if not self.fresh:
            self._spawn()

    def _more(self) -> None:
        """There is more than this worker has taken: wake another, or start one."""
        inbox = self.inbox
        if inbox.readers_idle:
            inbox.pass_on()
        elif self.workers < self.max_workers:
            self._spawn()

    def _worker_left(self) -> None:
        self.workers -= 1
        self.inbox.on_short = None  # nothing comes any more
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
        budget, record = run.budget, run.events.on
        left = Strays(self.stages).begin()
        entering = self.fresh = False
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
                    if len(self.stats[0].times) > FOLD:
                        # While they are still in the processor's cache.
                        self.tick(began)
                    await inbox.wait_items()
                    self.stats[0].wait_input += clock() - began
                    continue
                if items or again:
                    self._more()
                if left:  # freed between two calls, so no call of this item's
                    left.clear()
                self.active += 1
                now = clock()
                try:
                    while i < count:
                        step = steps[i]
                        stats = step.stats
                        before = item.size
                        if stats.started - stats.left >= step.limit:
                            since, entering = now, True
                            await self._enter(step, item, value)
                            entering = False
                            if run.halted:
                                item = None
                                break
                            now = clock()
                            stats.calls.waited(now, now - since)
                        stats.started += 1
                        code = step.code
                        if code == FLAT:
                            await self._fan_out(step, item, value, left)
                            item = None
                            break
                        result = await step.call(value)
                        if left:
                            await left.settle(step.stage, clock() - now)
                        stats.left += 1
                        then = clock()
                        stats.times.append(then - now)
                        if record:
                            stats.ends.append(then)
                            stats.who.append(item.origin.index)
                        now = then
                        if step.waiters:
                            step.leave()
                        if code == MAP:
                            if type(result) not in FINE:
                                check_result(result)
                            value = result
                            if budget is not None:
                                self._grown(step, item, before, value, budget)
                        elif code == FILTER and not result:
                            run.end_item(item, DROPPED if item.pos else DROPPED | REFUSED)
                            item = None
                            break
                        stats.items_out += 1
                        i += 1
                except BaseException as error:
                    if left:
                        await left.give_up(error)
                    assert item is not None
                    if interrupts(error, run):
                        if record and not entering:
                            step.stats.calls.say(now, clock(), item.origin.index, 1, CANCELLED)
                        raise
                    entering = False
                    step.stats.left += 1
                    if step.waiters:
                        step.leave()
                    tried = attempt.count if attempt is not None and attempt.step == i else 0
                    await self._failed(item, value, i, tried + 1, plain(error), now)
                    item = None
                finally:
                    self.active -= 1
                if item is None:
                    continue
                if out is None:
                    if run.collector is not None and steps[-1].code != SINK:
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

    async def _enter(self, step: Step, item: Item, value: Any) -> None:
        """Wait for a permit, and for the memory that the call is expected to take: it is counted from now on.

        Then for the gate, last: its place in the rate is for a call that goes now.
        """
        run, budget, stats = self.run, self.run.budget, step.stats
        self.active -= 1
        try:
            counted = budget is None
            while not run.halted:
                if stats.started - stats.left >= step.permits:
                    await step.enter(run)
                growth = int(step.growth or 0)
                if budget is None or counted or not growth:
                    if step.gate is None or await self._admit(step, step.gate, value, 1):
                        break
                elif budget.passes(growth, item.origin):
                    budget.add(growth)
                    item.size += growth
                    counted = True
                    if step.gate is None:
                        break
                else:
                    began = perf_counter()
                    await budget.room(growth, item.origin)
                    stats.wait_output += perf_counter() - began
        finally:
            self.active += 1

    async def _admit(self, step: Step, gate: Gate, value: Any, rows: int) -> bool:
        """Wait until the gate lets a call with `value` go, and leave its admission where the call finds it.

        False: the run was halted, or others took the permits meanwhile. What passed a limit has to go now, or not at all.
        """
        run, stats = self.run, step.stats
        try:
            call = gate.call(value)
        except Exception:
            stats.started += rows  # the attempt has failed, so it has begun
            raise
        if run.halted or not await gate.enter(call):
            return False
        # A batch has no permits: its worker is its permit.
        full = step.code != BATCH and stats.started - stats.left >= step.permits
        if run.halted or full:
            call.release()
            return False
        admission.set(call)
        return True

    def _grown(self, step: Step, item: Item, before: int, value: Any, budget: Budget) -> None:
        """Count what a call has made of an item that had `before` bytes."""
        size = size_of(value)
        budget.add(size - item.size)
        item.size = size
        step.learn(size - before)

    async def _fan_out(self, step: Step, item: Item, value: Any, left: Strays) -> None:
        """Run a flat_map on one item and pass its children on as they are produced."""
        stage, stats, run = step.stage, step.stats, self.run
        hold: list[Any] | None = [] if stage.retry is not None else None
        origin, number = item.origin, 0
        began, paused = perf_counter(), 0.0
        deadline = Deadline(stage.name, stage.timeout)
        async with (
            _unlimited if step.gate is None else step.gate.around() as call,
            deadline,
            children_of(step.call, value, stage.is_async) as children,
        ):
            async for child in children:
                if type(child) not in FINE:
                    check_result(child, "yielded")
                if call is not None:
                    call.judge(child)
                if hold is not None:
                    hold.append(child)
                    continue
                before = perf_counter()
                mark = call.now() if call is not None else 0.0
                await self._pass_child(stats, Item(child, origin, (*item.pos, number)), deadline)
                paused += perf_counter() - before
                if call is not None:
                    call.excuse_since(mark)
                number += 1
                if run.halted:
                    break
        if left:
            await left.settle(stage, perf_counter() - began - paused)
        for number, child in enumerate(hold or ()):
            await self._pass_child(stats, Item(child, origin, (*item.pos, number)), deadline)
        ended = perf_counter()
        stats.left += 1
        stats.times.append(ended - began - paused)
        if run.events.on:
            stats.calls.say(began, ended, origin.index)
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
        self, item: Item, value: Any, step: int, count: int, error: Exception, began: float
    ) -> None:
        stage, calls = self.stages[step], self.stats[step].calls
        if self.run.budget is not None:
            self.run.change(item, value)
        final = self.run.halted or not self.run.failures.wants_retry(stage, error, count)
        if self.run.events.on:
            calls.say(began, perf_counter(), item.origin.index, 1, FAILED if final else RETRIED)
        if final:
            self.gone(item, None, step, error, count)
            return
        await self._again(Attempt(item, value=value, step=step, count=count), error, 1)

    async def _again(self, attempt: Attempt, error: Exception, rows: int) -> None:
        """Bring `attempt`, which failed with `error`, back after its backoff, which holds no worker."""
        stats = self.stats[attempt.step]
        stats.retried += rows
        self.not_begun(stats, rows)
        delay = backoff(self.stages[attempt.step], error, attempt.count)
        stats.wait_limit += delay
        if self.run.inline:
            # Inline keeps the order: the next item waits for this one.
            await self._pause(delay)
            if not self.run.halted:
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

    async def _pause(self, seconds: float) -> None:
        """Wait, but not longer than the run goes on."""
        self._halting = asyncio.get_running_loop().create_future()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._halting, seconds)

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
