"""Loop segments: coroutine stages run by long-lived worker coroutines that pull from their channel.

A segment of several fused stages has as many workers as the stages have permits together. Each stage's own concurrency
is kept by a gate, which is two counters while the stage is not full. Workers are started as work appears.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine
from time import perf_counter
from typing import TYPE_CHECKING, Any

from tournant.engine.channel import Attempt
from tournant.engine.lineage import ARRIVED, DROPPED, REFUSED, Item
from tournant.engine.segment import Segment
from tournant.errors import StageTimeout
from tournant.pool.steps import WithState, checked_rows, many, plain

if TYPE_CHECKING:
    from tournant.engine.run import Run
    from tournant.stages import Stage

_MAP, _FILTER, _TAP, _SINK, _FLAT, _BATCH = range(6)
_CODES = {
    "map": _MAP,
    "filter": _FILTER,
    "tap": _TAP,
    "for_each": _SINK,
    "flat_map": _FLAT,
    "map_batches": _BATCH,
}

Call = Callable[[Any], Coroutine[Any, Any, Any]]


class _Step:
    """One stage inside a loop segment, ready to call."""

    __slots__ = ("call", "code", "limit", "stage", "stats", "waiters")

    def __init__(self, stage: Stage, stats: Any, call: Call, limit: int) -> None:
        self.stage = stage
        self.code = _CODES[stage.kind]
        self.stats = stats
        self.call = call
        self.limit = limit
        self.waiters: deque[asyncio.Future[None]] = deque()

    async def enter(self) -> None:
        """Wait until the stage has a permit."""
        began = perf_counter()
        stats = self.stats
        while stats.started - stats.left >= self.limit:
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
        self._forming = False
        self._states: list[tuple[Callable[[Any], None], Any]] = []

    def capacity(self) -> int:
        """Hold twice what the workers take at once."""
        size = self.stages[0].size or 1
        return max(16, min(1024, 2 * self.max_workers), size)

    def start(self) -> None:
        """Build the steps and the first worker."""
        for stage, stats, limit in zip(self.stages, self.stats, self.limits, strict=True):
            self.steps.append(_Step(stage, stats, self._callable(stage), limit))
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
        super().halt()
        self._maybe_done()

    def _callable(self, stage: Stage) -> Call:
        fn = stage.fn
        assert fn is not None
        if stage.state is not None:
            state = stage.state.factory()
            if stage.state.close is not None:
                self._states.append((stage.state.close, state))
            fn = WithState(fn, state)
        call: Any = fn
        if stage.kind == "flat_map":
            return call  # type: ignore[no-any-return]
        if not stage.is_async:
            call = _direct(fn)
        if stage.timeout is not None:
            call = _timed(call, stage.timeout, stage.name)
        return call  # type: ignore[no-any-return]

    def _spawn(self) -> None:
        self.workers += 1
        work = self._work_batches() if self.stages[0].kind == "map_batches" else self._work()
        task = self.run.spawn(work, f"tournant {self.stages[0].name} {self.workers}")
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
            for close, state in self._states:
                close(state)
            self._states.clear()
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
                        if stats.started - stats.left >= step.limit:
                            await step.enter()
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
                        elif code == _FILTER and not result:
                            run.end_item(item, DROPPED if item.pos else DROPPED | REFUSED)
                            item = None
                            break
                        stats.items_out += 1
                        i += 1
                except BaseException as error:
                    step.stats.left += 1
                    if step.waiters:
                        step.leave()
                    if isinstance(error, asyncio.CancelledError) and _cancelled():
                        raise
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
                if budget is not None:
                    run.change(item, value)
                if len(out.items) >= out.capacity:
                    began = clock()
                    await out.wait_room()
                    self.stats[-1].wait_output += clock() - began
                if not run.halted:
                    out.items.append(item)
                    out.added()
        finally:
            self._worker_left()

    async def _fan_out(self, step: _Step, item: Item, value: Any, attempt: Attempt | None) -> None:
        """Run a flat_map on one item and pass its children on as they are produced."""
        stage, stats, run = step.stage, step.stats, self.run
        hold: list[Any] | None = [] if stage.retry is not None else None
        origin, number = item.origin, 0
        began, paused = perf_counter(), 0.0
        deadline = (
            asyncio.timeout(stage.timeout)
            if stage.timeout is not None
            else contextlib.nullcontext()
        )
        try:
            async with deadline, _children(step.call, value, stage.is_async) as children:
                async for child in children:
                    if hold is not None:
                        hold.append(child)
                        continue
                    before = perf_counter()
                    await self._pass_child(stats, Item(child, origin, (*item.pos, number)), item)
                    paused += perf_counter() - before
                    number += 1
                    if run.halted:
                        return
        except TimeoutError as error:
            if isinstance(deadline, asyncio.Timeout) and deadline.expired():
                raise _too_long(stage.name, stage.timeout) from error
            raise
        stats.left += 1
        stats.times.append(perf_counter() - began - paused)
        if step.waiters:
            step.leave()
        for number, child in enumerate(hold or ()):
            await self._pass_child(stats, Item(child, origin, (*item.pos, number)), item)
        run.end_item(item, 0)

    async def _pass_child(self, stats: Any, child: Item, parent: Item) -> None:
        run, out = self.run, self.out
        if run.budget is not None:
            await run.admit_child(child, parent)
        child.origin.pending += 1
        stats.items_out += 1
        if out is None:
            run.arrive(child)
            return
        if len(out.items) >= out.capacity:
            began = perf_counter()
            await out.wait_room()
            stats.wait_output += perf_counter() - began
        if not run.halted:
            out.items.append(child)
            out.added()

    async def _failed(
        self, item: Item, value: Any, step: int, count: int, error: Exception
    ) -> None:
        stage = self.stages[step]
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

    # Batches.

    async def _work_batches(self) -> None:
        step, run, inbox, out = self.steps[0], self.run, self.inbox, self.out
        stats = step.stats
        items, again = inbox.items, inbox.again
        size, max_wait = step.stage.size or 32, step.stage.max_wait
        try:
            while True:
                attempt: Attempt | None = None
                if again:
                    attempt = again.popleft()
                    rows = attempt.rows or []
                elif len(items) >= size or (items and inbox.closed):
                    rows = [items.popleft() for _ in range(min(size, len(items)))]
                elif inbox.closed:
                    return
                else:
                    rows = await self._form(size, max_wait)
                    if not rows:
                        continue
                if inbox.writers or inbox.room_wanted:
                    inbox.removed()
                if items or again:
                    self._more()
                self.active += 1
                stats.started += len(rows)
                began = perf_counter()
                try:
                    results = checked_rows(await step.call([row.value for row in rows]), len(rows))
                except BaseException as error:
                    if isinstance(error, asyncio.CancelledError) and _cancelled():
                        raise
                    await self._batch_failed(rows, attempt, plain(error))
                    continue
                finally:
                    stats.left += len(rows)
                    stats.times.append(perf_counter() - began)
                    self.active -= 1
                stats.items_out += len(rows)
                for row, result in zip(rows, results, strict=True):
                    if out is None:
                        row.value = result
                        run.arrive(row)
                        continue
                    run.change(row, result)
                    if len(out.items) >= out.capacity:
                        await out.wait_room()
                    if not run.halted:
                        out.items.append(row)
                        out.added()
        finally:
            self._worker_left()

    async def _form(self, size: int, max_wait: float | None) -> list[Item]:
        """Wait for a batch: a full one, or what has come within `max_wait` seconds of this call's first item."""
        inbox = self.inbox
        items = inbox.items
        began = perf_counter()
        try:
            if not items or self._forming:
                await inbox.wait_items()
                return []
            self._forming = True
            inbox.threshold = size
            try:
                await inbox.wait_items(max_wait)
            finally:
                self._forming = False
                inbox.threshold = 1
            return [items.popleft() for _ in range(min(size, len(items)))]
        finally:
            self.stats[0].wait_input += perf_counter() - began

    async def _batch_failed(
        self, rows: list[Item], attempt: Attempt | None, error: Exception
    ) -> None:
        """Retry the whole batch while the policy allows; then halve it until the poison row stands alone."""
        stage = self.stages[0]
        count = (attempt.count if attempt is not None else 0) + 1
        final = attempt is not None and attempt.final
        if (
            not final
            and stage.retry is not None
            and self.run.failures.wants_retry(stage, error, count)
        ):
            await self._again(Attempt(None, rows, count=count), stage, count, len(rows))
        elif len(rows) == 1:
            self.gone(rows[0], attempt, 0, error, count)
        else:
            half = len(rows) // 2
            for part in (rows[half:], rows[:half]):
                self.inbox.again.appendleft(Attempt(None, part, count=count, final=True))


def _cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _too_long(name: str, seconds: float | None) -> StageTimeout:
    return StageTimeout(f"stage {name}: one attempt took longer than its timeout of {seconds} s")


def _direct(fn: Callable[[Any], Any]) -> Call:
    """A plain function as a coroutine function, for short functions on the loop and for inline runs."""

    async def call(value: Any) -> Any:
        return fn(value)

    return call


def _timed(call: Call, seconds: float, name: str) -> Call:
    async def timed(value: Any) -> Any:
        deadline = asyncio.timeout(seconds)
        try:
            async with deadline:
                return await call(value)
        except TimeoutError as error:
            if deadline.expired():
                raise _too_long(name, seconds) from error
            raise

    return timed


@contextlib.asynccontextmanager
async def _children(call: Any, value: Any, is_async: bool) -> AsyncIterator[AsyncIterator[Any]]:
    """The results of a flat_map callable as an async iterator, closed in any case."""
    result = call(value)
    if is_async and not hasattr(result, "__aiter__"):
        result = await result
    if hasattr(result, "__aiter__"):
        iterator = aiter(result)
    else:
        iterator = _from_sync(many(result))
    try:
        yield iterator
    finally:
        if hasattr(iterator, "aclose"):
            await iterator.aclose()


async def _from_sync(results: Any) -> AsyncIterator[Any]:
    iterator = iter(results)
    try:
        for result in iterator:
            yield result
    finally:
        if hasattr(iterator, "close"):
            iterator.close()
