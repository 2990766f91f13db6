"""``batch`` and ``unbatch``: items into lists and back, with their lineage."""

from __future__ import annotations

import asyncio
from time import perf_counter
from typing import TYPE_CHECKING

from tournant.engine.lineage import Batch, Item
from tournant.engine.segment import Segment
from tournant.errors import BatchMismatch
from tournant.observe.recording import CANCELLED, FAILED
from tournant.pool.steps import plain
from tournant.sizes import size_of

if TYPE_CHECKING:
    from tournant.engine.run import Run
    from tournant.stages import Stage


def _refuse(segment: Segment, item: Item, error: Exception) -> None:
    """Fail an item that can't be put into a list, or taken out of one."""
    if segment.run.events.on:
        now = perf_counter()
        segment.stats[0].calls.say(now, now, item.origin.index, 1, FAILED)
    segment.gone(item, None, 0, error, 1)


class Batcher(Segment):
    """``batch``: a list goes when it is full by size or weight, when its first item has waited ``max_wait``, or at the end."""

    def __init__(self, run: Run, stages: list[Stage]) -> None:
        super().__init__(run, stages, [1])
        self._task: asyncio.Task[None] | None = None
        self._rows: list[Item] = []
        self._since = 0.0
        self._relieved = False

    def start(self) -> None:
        """Begin to collect."""
        self._task = self.run.spawn(self._collect(), f"tournant {self.stages[0].name}")

    def capacity(self) -> int:
        """Hold a batch ahead."""
        return max(64, min(1024, self.stages[0].size or 64))

    def queued(self) -> int:
        """Count the batch that is being filled too."""
        return super().queued() + len(self._rows)

    def relieve(self) -> bool:
        """Send the partial batch."""
        if not self._rows or self._relieved:
            return False
        self._relieved = True
        self.inbox.threshold = 0
        self.inbox.added()
        self.inbox.threshold = 1
        return True

    def halt(self) -> None:
        """Drop the partial batch."""
        if self._rows and self.run.events.on:
            members = [row.origin.index for row in self._rows]
            self.stats[0].calls.say(self._since, perf_counter(), members, len(members), CANCELLED)
        self._rows = []
        super().halt()

    async def _collect(self) -> None:
        stage, inbox, stats = self.stages[0], self.inbox, self.stats[0]
        items = inbox.items
        size, weigh, limit, max_wait = stage.size, stage.weight, stage.max_weight, stage.max_wait
        weight, due = 0.0, 0.0
        while True:
            if not items:
                if inbox.closed:
                    break
                wait = None
                if self._rows and max_wait is not None:
                    wait = due - perf_counter()
                if self._relieved or (wait is not None and wait <= 0):
                    await self._send()
                    weight = 0.0
                    continue
                began = perf_counter()
                await inbox.wait_items(wait)
                stats.wait_input += perf_counter() - began
                continue
            item = items.popleft()
            if inbox.writers or inbox.room_wanted:
                inbox.removed()
            stats.started += 1
            if weigh is not None and limit is not None:
                try:
                    own = float(weigh(item.value))
                except BaseException as error:
                    stats.left += 1
                    _refuse(self, item, plain(error))
                    continue
                if self._rows and weight + own > limit:
                    await self._send()
                    weight = 0.0
                weight += own
            if not self._rows:
                self._since = perf_counter()
                due = self._since + (max_wait or 0.0)
            self._rows.append(item)
            full = (size is not None and len(self._rows) >= size) or (
                limit is not None and weight >= limit
            )
            if full or (max_wait is not None and perf_counter() >= due):
                await self._send()
                weight = 0.0
        if self._rows:
            await self._send()
        self.finish()

    async def _send(self) -> None:
        rows, self._rows = self._rows, []
        self._relieved = False
        stats, out, run = self.stats[0], self.out, self.run
        events = run.events
        stats.left += len(rows)
        if not rows:
            return
        stats.items_out += len(rows)
        batch = Batch(rows, events.batch([row.origin.index for row in rows]) if events.on else -1)
        if events.on:
            stats.calls.say(self._since, perf_counter(), batch.index, len(rows))
        item = Item([row.value for row in rows], batch)
        if out is None:
            run.arrive(item)
            return
        if out.full():
            await out.wait_room()
        if not run.halted:
            out.items.append(item)
            out.added()


class Unbatcher(Segment):
    """``unbatch``: the entries of a list as items again.

    A list as long as its batch gives each entry back to the input it came from, by position. A list of another length
    gives entries that descend from all of the batch's inputs.

    Attributes:
        strict: refuse the latter, because a barrier follows, which can't place them.
    """

    def __init__(self, run: Run, stages: list[Stage]) -> None:
        super().__init__(run, stages, [1])
        self.strict = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to unpack."""
        self._task = self.run.spawn(self._unpack(), f"tournant {self.stages[0].name}")

    async def _unpack(self) -> None:
        inbox, stats, out, run = self.inbox, self.stats[0], self.out, self.run
        items = inbox.items
        while True:
            if not items:
                if inbox.closed:
                    break
                began = perf_counter()
                await inbox.wait_items()
                stats.wait_input += perf_counter() - began
                continue
            item = items.popleft()
            if inbox.writers or inbox.room_wanted:
                inbox.removed()
            stats.started += 1
            stats.left += 1
            batch = item.origin
            assert isinstance(batch, Batch)
            try:
                values = list(item.value)
            except TypeError:
                problem = TypeError(
                    f"unbatch got a {type(item.value).__name__} where a list belongs; the stages between .batch() and "
                    ".unbatch() must return an iterable of results"
                )
                _refuse(self, item, problem)
                continue
            if len(values) == len(batch.members) and not item.pos:
                rows = batch.members
                if run.budget is not None:
                    run.budget.add(-item.size)
                for row, value in zip(rows, values, strict=True):
                    run.change(row, value)
            elif self.strict:
                mismatch = BatchMismatch(
                    f"unbatch got {len(values)} results for a batch of {len(batch.members)}, so nobody can tell which input each "
                    "belongs to, but a later .gather() or .ordered() needs to know; return one result per entry, in order"
                )
                _refuse(self, item, mismatch)
                continue
            else:
                rows = [Item(value, batch, (*item.pos, n)) for n, value in enumerate(values)]
                batch.pending += len(rows)
                if run.budget is not None:
                    for row in rows:
                        row.size = size_of(row.value)
                        run.budget.add(row.size)
                run.end_item(item, 0)
            if run.events.on:
                now = perf_counter()
                stats.calls.say(now, now, batch.index)
            for row in rows:
                stats.items_out += 1
                if out is None:
                    run.arrive(row)
                    continue
                if out.full():
                    await out.wait_room()
                if run.halted:
                    break
                out.items.append(row)
                out.added()
        self.finish()
