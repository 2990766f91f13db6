"""Pool segments: thread and process stages, handed to the pool's lanes in chunks.

The loop's side of the hand-over. A chunk's results come back as parts, by one wake-up of the loop each. A chunk is a few
milliseconds of work by the measured time per item; what comes back to be tried again runs as a chunk of its own.
"""

from __future__ import annotations

import asyncio
from time import perf_counter
from typing import TYPE_CHECKING, Any

from tournant.engine.channel import Attempt
from tournant.engine.chunk import Chunk
from tournant.engine.lineage import DROPPED, REFUSED, Item
from tournant.engine.noting import note_cancelled, note_dropped, note_failed, note_part
from tournant.engine.pool_admission import Admissions, end_admission
from tournant.engine.pool_memory import Memory
from tournant.engine.recovery import Recovery
from tournant.pool.lanes import Spec, World
from tournant.pool.steps import Dropped, Failed, Part
from tournant.sizes import size_of

if TYPE_CHECKING:
    from tournant.engine.run import Run
    from tournant.stages import Stage

#: Seconds of work in a chunk.
CHUNK_SECONDS = 0.002
#: The same for processes: between two chunks a process waits for two threads and the loop to be scheduled. Results are
#: sent every few milliseconds all the same.
PROCESS_SECONDS = 0.012
#: The same where the stage waits for I/O: there the concurrency is the point.
BLOCKING_SECONDS = 0.001
MOST_ITEMS = 1024
#: Seconds that no item costs less than, hand-over included.
LEAST_COST = 2e-6
#: Bytes of one chunk, and of a channel, that cheap but large items may come to.
CHUNK_BYTES = 4 << 20
CHANNEL_BYTES = 64 << 20
#: Children beyond the channel's capacity at which a fan-out in work is made to wait.
SLACK = 512
#: Timeouts below this are judged item by item: in a chunk, news of finished items may be as old as that.
SURE_SECONDS = 0.25
#: Seconds after which a partial batch goes, unless the stage says otherwise.
BATCH_WAIT = 0.1


class PoolSegment(Recovery, Memory, Admissions):
    """Fused stages that run on lanes of the pool.

    Attributes:
        cost: seconds per item (per batch for ``map_batches``), smoothed; 0 until measured.
        bytes: estimated bytes per item, smoothed.
    """

    def __init__(self, run: Run, stages: list[Stage], world: World) -> None:
        first = stages[0]
        self.on = "threads" if first.on == "auto" else first.on
        self.blocking = first.blocking
        self.kind: str = "blocking" if first.blocking else self.on
        caps = [stage.max_workers for stage in stages if stage.max_workers is not None]
        slots = run.pool.slots.count
        self.limit = first.concurrency if self.blocking else min([slots, *caps])
        super().__init__(run, stages, [self.limit] * len(stages))
        self.spec = Spec(
            [(s.kind, self.callable_of(s), s.state) for s in stages],
            run.context,
            world,
            takes_slot=not self.blocking,
            part_bytes=self._share_of_memory(),
        )
        self.batch = first.size or 32 if first.kind == "map_batches" else 0
        self.sink = stages[-1].kind == "for_each"
        self.cost = 0.0
        self.bytes = 0.0
        self._partial: asyncio.TimerHandle | None = None
        self._partial_due = False
        self._seconds = {"blocking": BLOCKING_SECONDS, "processes": PROCESS_SECONDS}.get(
            self.kind, CHUNK_SECONDS
        )

    def specs(self) -> list[Spec]:
        """Return what lanes may have been told of this segment."""
        return [self.spec]

    def capacity(self) -> int:
        """Hold two chunks per worker, fewer where items are large."""
        per_chunk = self._chunk_items() * max(1, self.batch)
        items = max(2 * per_chunk * min(self.limit, 8), 2 * self.limit, 4, 2 * self.batch)
        if self.bytes > 0:
            items = min(items, max(2 * self.limit, 2 * self.batch, int(CHANNEL_BYTES / self.bytes)))
        return int(min(items, 2 * self.limit * MOST_ITEMS))

    def start(self) -> None:
        """Connect to the scheduler."""
        self.inbox.on_items = self._items_came
        if self.out is not None:
            self.out.on_room = self.run.schedule

    def idle(self) -> bool:
        """Tell whether no chunk is at work, no retry is due, and the gate does not wait for others."""
        expects = self.gate is not None and self.gate.expects()
        return not self.working and not self.returning and not expects

    def running(self, n: int) -> int:
        """Return the items out on lanes."""
        return self.in_work

    def halt(self) -> None:
        """Start nothing new."""
        self.forget_retries()
        self.drop_next()
        super().halt()
        for chunk in list(self.paused):
            self.paused.remove(chunk)
            note_cancelled(self, chunk)
            chunk.abandon()
            self._chunk_over(chunk)
        self._maybe_done()

    def cancel(self) -> None:
        """Give up every chunk; processes that hold one are killed."""
        self.halt()
        for chunk in list(self.chunks):
            note_cancelled(self, chunk)
            chunk.abandon()
            chunk.kill()
            self._chunk_over(chunk)
        self._maybe_done()

    # Scheduling.

    def _items_came(self) -> None:
        if self.inbox.closed and not self.inbox.items:
            self._maybe_done()
        self.run.schedule()

    def ready(self) -> bool:
        """Tell whether there is work to start (or to resume) and room behind it."""
        if self.working >= self.limit:
            return False
        if not self._room():
            return False
        if self.paused:
            return self._may_resume()
        if self.next is not None:
            return self.admitted()
        if self.wants_memory():
            return False
        if self.inbox.again:
            return self.admitted()
        items = self.inbox.items
        if not items:
            return False
        if (
            self.batch
            and len(items) < self.batch
            and not self.inbox.closed
            and not self._partial_due
        ):
            if self._partial is None:
                wait = self.stages[0].max_wait or BATCH_WAIT
                self._partial = self.run.loop.call_later(wait, self._partial_now)
            return False
        return self.admitted()

    def _room(self) -> bool:
        out = self.out
        if out is not None and len(out.items) >= out.capacity:
            out.room_wanted = True
            return False
        return True

    def _partial_now(self) -> None:
        self._partial = None
        self._partial_due = True
        self.run.schedule()

    def relieve(self) -> bool:
        """Let a partial batch go."""
        if not self.batch or not self.inbox.items or self._partial_due:
            return False
        self._partial_due = True
        self.run.schedule()
        return True

    def acquire(self) -> bool:
        """Take what a chunk needs to run: a slot of the pool, or nothing where the stage only waits."""
        return self.blocking or self.run.pool.slots.acquire(self.run)

    def release(self) -> None:
        """Give back what `acquire` took."""
        if not self.blocking and not self.run.closed:
            self.run.pool.slots.release(self.run)

    def dispatch(self, waited: float = 0.0) -> None:
        """Start one chunk, or resume one; the caller has acquired the slot, and takes it back if this raises.

        Args:
            waited: seconds that it has waited for the slot.
        """
        if self.paused:
            self.working += 1
            chunk = self.paused.pop(0)
            if self.run.budget is not None:
                self.run.budget.passes(0, chunk.origin())
            chunk.resume()
            return
        lane = self.run.pool.lane(self.kind)
        inbox = self.inbox
        self.working += 1
        self._favoured = False
        chunk = self.take_admitted()
        self.in_work += chunk.count
        self.stats[0].started += chunk.count
        self.chunks.add(chunk)
        self._reserve(chunk)
        chunk.lane = lane
        chunk.sent = chunk.told = perf_counter()
        chunk.waited += waited
        lane.submit(chunk)
        if inbox.writers or inbox.room_wanted:
            inbox.removed()

    def _chunk_items(self) -> int:
        if self.gate is not None or not self.cost:
            return 1
        if self.timeout is not None and self.timeout < SURE_SECONDS:
            return 1
        n = min(MOST_ITEMS, int(self._seconds / max(self.cost, LEAST_COST * max(1, self.batch))))
        each = max(self.bytes, self.growth or 0.0)
        if each > 0:
            most = min(CHUNK_BYTES, self.spec.part_bytes or CHUNK_BYTES)
            n = min(n, int(most / (each * max(1, self.batch))))
        return max(1, n)

    def _take(self) -> Chunk:
        again = self.inbox.again
        return self._chunk_again(again.popleft()) if again else self._chunk()

    def _chunk(self) -> Chunk:
        items = self.inbox.items
        free = max(1, self.limit - self.working + 1)
        sample = size_of(items[0].value, 2)
        self.bytes = sample if not self.bytes else 0.8 * self.bytes + 0.2 * sample
        if self.batch:
            whole = -(-len(items) // self.batch)
            batches = max(1, min(self._chunk_items(), whole // free))
            groups = [
                [items.popleft() for _ in range(min(self.batch, len(items)))]
                for _ in range(batches)
            ]
            self._partial_due = False
            if self._partial is not None:
                self._partial.cancel()
                self._partial = None
            values: list[Any] = [[row.value for row in rows] for rows in groups]
            return Chunk(self, groups, values, count=sum(len(rows) for rows in groups))
        n = min(self._chunk_items(), -(-len(items) // free))
        if n == len(items):
            taken = list(items)
            items.clear()
        else:
            pop = items.popleft
            taken = [pop() for _ in range(n)]
        return Chunk(self, taken, [item.value for item in taken], count=n)

    def _chunk_again(self, attempt: Attempt) -> Chunk:
        if attempt.rows is not None:
            values: list[Any] = [[row.value for row in attempt.rows]]
            return Chunk(self, [attempt.rows], values, count=len(attempt.rows), attempt=attempt)
        assert attempt.item is not None
        return Chunk(self, [attempt.item], [attempt.item.value], count=1, attempt=attempt)

    # Results, on the loop.

    def on_part(self, chunk: Chunk, part: Part) -> None:
        """Take a part of a chunk's results."""
        if chunk.abandoned:
            if part.last:
                self._chunk_over(chunk)
            return
        if not self.flat or part.ends:
            chunk.progress = perf_counter()
        self._unreserve(chunk)
        begin = chunk.reported
        if self.flat:
            self._take_flat(chunk, part)
        elif self.batch:
            self._take_batches(chunk, part)
        else:
            self._take_plain(chunk, part)
        if self.run.events.on:
            note_part(self, chunk, part, begin)
        if part.last:
            self._learn(chunk)
            self._chunk_over(chunk)
        elif self.flat:
            self._hold_back(chunk)
        if self.out is not None:
            self.out.added()
        self.run.schedule()

    def _hold_back(self, chunk: Chunk) -> None:
        """Let a fan-out in work go on, or give its slot away until there is room."""
        out, budget = self.out, self.run.budget
        if chunk.paused:
            # It was on its way when the lane was told to wait.
            chunk.pause()
        elif (out is None or len(out.items) < out.capacity + SLACK) and (
            budget is None or budget.passes(0, chunk.origin())
        ):
            chunk.gate.release()
        else:
            chunk.pause()
            self.paused.append(chunk)
            self.working -= 1
            self.release()
            if budget is not None:
                self.run.lookout.soon()

    def _measure(self, chunk: Chunk, part: Part, finished: int) -> None:
        for stats, times in zip(self.stats, part.times, strict=False):
            stats.add_times(times)
        chunk.spent += sum(map(sum, part.times))
        chunk.finished += finished
        for stats, times in zip(self.stats[1:], part.times[1:], strict=False):
            stats.started += len(times)
            stats.left += len(times)
        self.in_work -= finished if not self.batch else 0

    def _learn(self, chunk: Chunk) -> None:
        if chunk.finished:
            cost = chunk.spent / chunk.finished
            self.cost = cost if not self.cost else 0.6 * self.cost + 0.4 * cost
            self.inbox.set_capacity(self.capacity())

    def _take_plain(self, chunk: Chunk, part: Part) -> None:
        values, run = part.values, self.run
        begin = chunk.reported
        chunk.reported += len(values)
        items: list[Item] = chunk.items[begin : chunk.reported]
        self._measure(chunk, part, len(values))
        self.stats[0].left += len(values)
        if part.odd:
            items, values = self._sort_out(chunk, items, values)
        for stats in self.stats:
            stats.items_out += len(values)
        out = self.out
        if out is None:
            run.arrive_many(items, values if not self.sink else None)
            return
        if run.halted:
            return
        if run.budget is not None:
            self._grew(items, values)
        else:
            for item, value in zip(items, values, strict=True):
                item.value = value
        out.items.extend(items)

    def _sort_out(
        self, chunk: Chunk, items: list[Item], values: list[Any]
    ) -> tuple[list[Item], list[Any]]:
        """Deal with failed and dropped items; return the others."""
        good_items, good_values = [], []
        for n, (item, value) in enumerate(zip(items, values, strict=True)):
            kind = type(value)
            if kind is Failed:
                for stats in self.stats[: max(0, value.step)]:
                    stats.items_out += 1
                self._step_failed(value.step)
                note_failed(
                    chunk, n, value.step, self._failed(chunk, item, value.step, value.error)
                )
            elif kind is Dropped:
                for stats in self.stats[: value.step]:
                    stats.items_out += 1
                note_dropped(chunk, n, value.step)
                self.run.end_item(item, DROPPED if item.pos else DROPPED | REFUSED)
            else:
                good_items.append(item)
                good_values.append(value)
        return good_items, good_values

    def _step_failed(self, step: int) -> None:
        if step > 0:
            self.stats[step].started += 1
            self.stats[step].left += 1

    def _take_flat(self, chunk: Chunk, part: Part) -> None:
        run = self.run
        ends = part.ends or []
        self._measure(chunk, part, len(ends))
        self.stats[0].left += len(ends)
        for stats in self.stats[:-1]:
            stats.items_out += len(ends)
        at = 0
        for unit, (n, what) in enumerate(ends):
            parent: Item = chunk.items[chunk.reported]
            self._children(chunk, parent, part.values[at:n], part.odd)
            at = n
            chunk.reported += 1
            chunk.children = 0
            if type(what) is Failed:
                if what.step < len(self.stages) - 1:
                    self._step_failed(what.step)
                note_failed(
                    chunk, unit, what.step, self._failed(chunk, parent, what.step, what.error)
                )
            elif type(what) is Dropped:
                note_dropped(chunk, unit, what.step)
                run.end_item(parent, DROPPED if parent.pos else DROPPED | REFUSED)
            else:
                run.end_item(parent, 0)
        if at < len(part.values):
            self._children(chunk, chunk.items[chunk.reported], part.values[at:], part.odd)

    def _children(self, chunk: Chunk, parent: Item, values: list[Any], odd: bool) -> None:
        """Pass on children of `parent`, which is still alive."""
        if not values or self.run.halted:
            return
        run, out, origin, pos = self.run, self.out, parent.origin, parent.pos
        first = chunk.children
        chunk.children += len(values)
        origin.pending += len(values)
        children = [Item(value, origin, (*pos, n)) for n, value in enumerate(values, first)]
        if odd:
            for child in children:
                if type(child.value) is Failed:
                    self.gone(child, None, len(self.stages) - 1, child.value.error, 1)
            children = [child for child in children if type(child.value) is not Failed]
        self.stats[-1].items_out += len(children)
        if run.budget is not None:
            for child in children:
                child.size = size_of(child.value)
                run.budget.add(child.size)
        if out is None:
            run.arrive_many(children, [child.value for child in children])
        else:
            out.items.extend(children)

    def _take_batches(self, chunk: Chunk, part: Part) -> None:
        run, out, stats = self.run, self.out, self.stats[0]
        begin = chunk.reported
        chunk.reported += len(part.values)
        self._measure(chunk, part, len(part.values))
        batches = zip(chunk.items[begin : chunk.reported], part.values, strict=True)
        for n, (rows, results) in enumerate(batches):
            self.in_work -= len(rows)
            stats.left += len(rows)
            if type(results) is Failed:
                note_failed(chunk, n, results.step, self._batch_failed(chunk, rows, results.error))
                continue
            stats.items_out += len(rows)
            if out is None:
                run.arrive_many(rows, results)
            elif not run.halted:
                self._grew(rows, results)
                out.items.extend(rows)

    # Ends.

    def on_left(self, chunk: Chunk) -> None:
        """A lane has stopped working on an abandoned chunk."""
        self._chunk_over(chunk)
        self.run.schedule()

    def _chunk_over(self, chunk: Chunk) -> None:
        self.stuck.discard(chunk)
        self._unreserve(chunk)
        end_admission(chunk)
        if chunk not in self.chunks:
            return
        self.chunks.discard(chunk)
        if chunk.paused:
            if chunk in self.paused:
                self.paused.remove(chunk)
        else:
            self.working -= 1
            self.release()
        self._maybe_done()

    def _maybe_done(self) -> None:
        inbox = self.inbox
        if (
            inbox.closed
            and not inbox.items
            and not inbox.again
            and not self.chunks
            and self.next is None
            and not self.returning
            and not self.done
        ):
            self.finish()
