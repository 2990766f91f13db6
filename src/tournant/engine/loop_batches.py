"""``map_batches`` on the loop: worker coroutines that form their batches from what lies in their channel."""

from __future__ import annotations

from array import array
from time import perf_counter
from typing import TYPE_CHECKING

from tournant.engine.channel import Attempt
from tournant.engine.failures import blames_a_row
from tournant.engine.lineage import Item
from tournant.engine.loop_segment import LoopSegment, interrupts
from tournant.engine.strays import Strays
from tournant.observe.recording import CANCELLED, FAILED, OK, RETRIED
from tournant.pool.steps import checked_rows, plain

if TYPE_CHECKING:
    from tournant.engine.gate import Gate
    from tournant.engine.run import Run
    from tournant.stages import Stage


class LoopBatchSegment(LoopSegment):
    """A ``map_batches`` stage on the loop."""

    def __init__(self, run: Run, stages: list[Stage]) -> None:
        super().__init__(run, stages)
        self._forming = False

    async def _work(self) -> None:
        step, run, inbox, out = self.steps[0], self.run, self.inbox, self.out
        stats = step.stats
        items, again = inbox.items, inbox.again
        size, max_wait = step.stage.size or 32, step.stage.max_wait
        left = Strays(self.stages).begin()
        self.fresh = False
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
                ready = perf_counter() if step.gate is not None else 0.0
                if step.gate is not None and not await self._let_in(step.gate, rows, attempt):
                    continue
                left.clear()
                self.active += 1
                stats.started += len(rows)
                began = perf_counter()
                if ready:
                    stats.calls.waited(began, began - ready)
                try:
                    results = checked_rows(await step.call([row.value for row in rows]), len(rows))
                    if left:
                        await left.settle(step.stage, perf_counter() - began)
                except BaseException as error:
                    if left:
                        await left.give_up(error)
                    if interrupts(error, run):
                        self._say(rows, began, perf_counter(), CANCELLED)
                        raise
                    await self._batch_failed(rows, attempt, plain(error), began)
                    continue
                finally:
                    ended = perf_counter()
                    stats.left += len(rows)
                    stats.times.append(ended - began)
                    self.active -= 1
                self._say(rows, began, ended, OK)
                stats.items_out += len(rows)
                for row, result in zip(rows, results, strict=True):
                    if out is None:
                        row.value = result
                        run.arrive(row)
                        continue
                    run.change(row, result)
                    if len(out.items) >= out.capacity:
                        began = perf_counter()
                        await out.wait_room()
                        stats.wait_output += perf_counter() - began
                    if not run.halted:
                        out.items.append(row)
                        out.added()
        finally:
            self._worker_left()

    async def _let_in(self, gate: Gate, rows: list[Item], attempt: Attempt | None) -> bool:
        """Wait with a batch until the gate lets it go. False if it does not go: its cost can't be told, or the run was halted."""
        step = self.steps[0]
        try:
            if not await self._admit(step, gate, [row.value for row in rows], len(rows)):
                return False
        except Exception as error:
            step.stats.left += len(rows)
            await self._batch_failed(rows, attempt, error, perf_counter())
            return False
        if attempt is None and not callable(step.stage.cost):
            # More may have come while it waited, and costs no more.
            inbox, most = self.inbox, (step.stage.size or 32) - len(rows)
            rows += [inbox.items.popleft() for _ in range(min(most, len(inbox.items)))]
            if inbox.writers or inbox.room_wanted:
                inbox.removed()
        return True

    def relieve(self) -> bool:
        """Send the partial batch."""
        if not self._forming or not self.inbox.items:
            return False
        self.inbox.threshold = 0
        self.inbox.added()
        return True

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
        self, rows: list[Item], attempt: Attempt | None, error: Exception, began: float
    ) -> None:
        """Retry the whole batch while the policy allows; then halve it until the poison row stands alone."""
        stage = self.stages[0]
        count = (attempt.count if attempt is not None else 0) + 1
        final = attempt is not None and attempt.final
        started, ended = self.stats[0].started, perf_counter()
        if not final and not self.run.halted and self.run.failures.wants_retry(stage, error, count):
            await self._again(Attempt(None, rows, count=count), error, len(rows))
        elif len(rows) == 1 or not blames_a_row(error):
            for row in rows:
                self.gone(row, attempt, 0, error, count)
        elif not self.run.halted:
            half = len(rows) // 2
            self.not_begun(self.stats[0], len(rows))
            for part in (rows[half:], rows[:half]):
                self.inbox.again.appendleft(Attempt(None, part, count=count, final=True))
        # Those that are tried again were taken out of the counts.
        again = self.stats[0].started < started
        self._say(rows, began, ended, RETRIED if again else FAILED)

    def _say(self, rows: list[Item], began: float, ended: float, outcome: str) -> None:
        """Record a call."""
        if self.run.events.on:
            who = array("q", [row.origin.index for row in rows])
            self.stats[0].calls.say(began, ended, who, len(rows), outcome)
