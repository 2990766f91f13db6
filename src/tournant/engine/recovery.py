"""What becomes of a chunk that went wrong: retries, halved batches, dead workers, attempts that took too long.

The rule: only the item that is to blame fails. Its chunk-mates run again, alone where it is not clear which one it was.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from tournant.engine.channel import Attempt
from tournant.engine.chunk import Chunk
from tournant.engine.failures import backoff, blames_a_row
from tournant.engine.lineage import Item
from tournant.engine.noting import note_death, note_rest
from tournant.engine.pool_admission import end_admission
from tournant.engine.segment import Segment
from tournant.errors import StageTimeout, WorkerDied

if TYPE_CHECKING:
    from tournant.engine.run import Run
    from tournant.observe.events import Events, Stretches
    from tournant.policies import Retry
    from tournant.stages import Stage


class Recovery(Segment):
    """The part of a pool segment that deals with failure.

    Attributes:
        returning: attempts that wait for their backoff.
        in_work: items out on lanes.
        chunks: those out on a lane.
        stuck: timed out on a thread that can't be stopped; it no longer counts as work.
        stretches: the ring that keeps what its workers did.
    """

    stretches: Stretches

    def __init__(self, run: Run, stages: list[Stage], limits: list[int]) -> None:
        super().__init__(run, stages, limits)
        self.flat = stages[-1].kind == "flat_map"
        self.retry: Retry | None = next((s.retry for s in stages if s.retry is not None), None)
        self.timeout = next((s.timeout for s in stages if s.timeout is not None), None)
        self.in_work = 0
        self.returning = 0
        self.chunks: set[Chunk] = set()
        self.stuck: set[Chunk] = set()
        self._timers: set[asyncio.TimerHandle] = set()

    def record(self, events: Events, first: int) -> None:
        """Take the rings that keep what happens here."""
        super().record(events, first)
        self.stretches = events.segment(first)

    def _chunk_over(self, chunk: Chunk) -> None:
        raise NotImplementedError

    def forget_retries(self) -> None:
        """Give up every attempt that waits for its backoff."""
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        self.returning = 0

    def _failed(self, chunk: Chunk, item: Item, step: int, error: Exception) -> bool:
        """Have an item tried again, or fail it; tell whether it is tried again."""
        step = max(0, step)
        stage = self.stages[step]
        count = (chunk.attempt.count if chunk.attempt is not None else 0) + 1
        if not self.run.halted and self.run.failures.wants_retry(stage, error, count):
            deaths = chunk.attempt.deaths if chunk.attempt is not None else 0
            self._again(Attempt(item, count=count, deaths=deaths), stage, error, 1)
            return True
        self.gone(item, None, step, error, count)
        return False

    def _batch_failed(self, chunk: Chunk, rows: list[Item], error: Exception) -> bool:
        """Have a batch tried again, whole or in halves, or fail it; tell whether it is tried again."""
        stage, attempt = self.stages[0], chunk.attempt
        count = (attempt.count if attempt is not None else 0) + 1
        final = attempt is not None and attempt.final
        if not final and not self.run.halted and self.run.failures.wants_retry(stage, error, count):
            self._again(Attempt(None, rows, count=count), stage, error, len(rows))
            return True
        if len(rows) == 1 or not blames_a_row(error):
            for row in rows:
                self.gone(row, None, 0, error, count)
            return False
        if not self.run.halted:
            self._not_begun(len(rows))
            half = len(rows) // 2
            for part in (rows[half:], rows[:half]):
                self.inbox.again.appendleft(Attempt(None, part, count=count, final=True))
            self.run.schedule()
            return True
        return False

    def _again(self, attempt: Attempt, stage: Stage, error: Exception, rows: int) -> None:
        self.stats[0].retried += rows
        self._not_begun(rows)
        delay = backoff(stage, error, attempt.count)
        self.stats[0].wait_limit += delay
        self.returning += 1

        def due() -> None:
            self._timers.discard(timer)
            self.returning -= 1
            self.inbox.again.append(attempt)
            self.run.schedule()

        timer = self.run.loop.call_later(delay, due)
        self._timers.add(timer)

    def _not_begun(self, rows: int) -> None:
        """Take items that run again out of the counts: each is counted once, however often it is tried."""
        self.stats[0].started -= rows
        self.stats[0].left -= rows

    def on_failed(self, chunk: Chunk, error: BaseException) -> None:
        """A chunk could not start: alone, its item fails; with others, each is tried alone."""
        if not chunk.abandoned:
            rest = self._unreported(chunk)
            before = self.stats[0].started
            if len(rest) == 1:
                problem = error if isinstance(error, Exception) else RuntimeError(repr(error))
                unit = rest[0]
                if isinstance(unit, list):
                    self._batch_failed(chunk, unit, problem)
                else:
                    self._failed(chunk, unit, 0, problem)
            else:
                self._alone(chunk, rest, deaths=0)
            note_rest(self, chunk, rest, before)
        self._chunk_over(chunk)
        self.run.schedule()

    def on_died(self, chunk: Chunk, how: str) -> None:
        """The chunk's worker process died: what it held runs again, one at a time."""
        if not chunk.abandoned:
            rest = self._unreported(chunk)
            before = self.stats[0].started
            note_death(self, chunk, how, rest)
            if chunk.timed_out:
                self._timed_out(chunk, rest)
            elif len(rest) == 1 and chunk.attempt is not None and chunk.attempt.deaths:
                error = WorkerDied(
                    f"the worker process died twice while it held this item (last: {how}); if it was killed for memory, "
                    "give it smaller items or fewer workers (max_workers=); if it crashed, look at the native code it calls"
                )
                unit = rest[0]
                if isinstance(unit, list):
                    if len(unit) == 1:
                        self.gone(unit[0], None, 0, error, 2)
                    else:
                        self._halve_dead(unit)
                else:
                    self.gone(unit, None, 0, error, chunk.attempt.count + 2)
            else:
                # Of several nobody knows which one it was; what was alone has it on its account.
                self._alone(chunk, rest, deaths=1 if len(rest) == 1 else 0)
            note_rest(self, chunk, rest, before)
        self._chunk_over(chunk)
        self.run.schedule()

    def _halve_dead(self, rows: list[Item]) -> None:
        if self.run.halted:
            return
        self._not_begun(len(rows))
        half = len(rows) // 2
        for part in (rows[half:], rows[:half]):
            self.inbox.again.appendleft(Attempt(None, part, deaths=1, final=True))

    def _unreported(self, chunk: Chunk) -> list[Any]:
        """Return the units of a chunk that no part has told of, and take them out of the counts."""
        rest = chunk.items[chunk.reported :]
        for unit in rest:
            rows = len(unit) if isinstance(unit, list) else 1
            self.in_work -= rows
            self.stats[0].left += rows
        return rest

    def tick(self, now: float) -> None:
        """Send results that wait behind a long item, and end attempts that take too long."""
        for chunk in list(self.chunks):
            outbox = chunk.outbox
            if outbox is not None and now - outbox.last_flush > 0.02 and chunk.flush(outbox):
                # Whose results are on their way is not to blame for what takes long.
                continue
            if (
                self.timeout is not None
                and chunk.progress
                and not chunk.paused
                and not chunk.timed_out
                and now - chunk.progress > self.timeout
            ):
                chunk.timed_out = True
                if not chunk.kill():
                    # A thread can't be stopped. It is left behind, and its slot goes to somebody else: a call that
                    # hangs seldom computes, and two of them must not bring the run to a halt.
                    rest, before = self._unreported(chunk), self.stats[0].started
                    self._timed_out(chunk, rest)
                    note_rest(self, chunk, rest, before)
                    chunk.abandon()
                    self._chunk_over(chunk)
                    self.stuck.add(chunk)
                    self.run.schedule()

    def _alone(self, chunk: Chunk, rest: list[Any], deaths: int) -> None:
        before = chunk.attempt
        count = before.count if before is not None else 0
        deaths += before.deaths if before is not None else 0
        again = []
        for n, unit in enumerate(rest):
            self._not_begun(len(unit) if isinstance(unit, list) else 1)
            skip = chunk.children if self.flat and n == 0 else 0
            if isinstance(unit, list):
                final = before.final if before is not None else False
                again.append(Attempt(None, unit, count=count, deaths=deaths, final=final))
            else:
                again.append(Attempt(unit, count=count, deaths=deaths, skip=skip))
        if not self.run.halted:
            self.inbox.again.extend(again)

    def _timed_out(self, chunk: Chunk, rest: list[Any]) -> None:
        if not rest:
            return
        error = StageTimeout(
            f"stage {self.stages[0].name}: one attempt took longer than its timeout of {self.timeout} s"
        )
        end_admission(chunk, error)
        unit = rest[0]
        if isinstance(unit, list):
            self._batch_failed(chunk, unit, error)
        else:
            self._failed(chunk, unit, 0, error)
        saved, chunk.attempt = chunk.attempt, None
        chunk.children = 0
        self._alone(chunk, rest[1:], deaths=0)
        chunk.attempt = saved
