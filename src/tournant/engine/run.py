"""One execution of a pipeline: what ties source, segments, pool, failures and counts together."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable, Coroutine
from itertools import pairwise
from time import perf_counter
from typing import TYPE_CHECKING, Any

from tournant import sync
from tournant.engine import crew, plan, strays, summary
from tournant.engine.barriers import Barrier, Ordered
from tournant.engine.budget import Budget
from tournant.engine.channel import Channel
from tournant.engine.failures import Failures
from tournant.engine.guarding import Guarding
from tournant.engine.lineage import ARRIVED, CLOSED, DROPPED, FAILED, Input, Item, inputs_of
from tournant.engine.noting import record
from tournant.engine.pool_segment import PoolSegment
from tournant.engine.segment import Segment
from tournant.engine.source import Source
from tournant.engine.stall import Lookout
from tournant.errors import LostItems, RunClosed, SourceFailed, TournantError, short
from tournant.pool import lanes
from tournant.pool.leftovers import present
from tournant.pool.steps import plain
from tournant.report import Report, RunSnapshot
from tournant.sizes import size_of

if TYPE_CHECKING:
    from tournant.engine.bookkeeping import Bookkeeping
    from tournant.engine.gate import Gate
    from tournant.guards.finding import Finding
    from tournant.pipeline import Pipeline
    from tournant.stages import Stage

#: Seconds that cancelled calls get to clean up.
_CANCEL_SECONDS = 5.0


class Run:
    """One run. Everything here happens on its loop, but for `drain`, `cancel`, `snapshot` and `slot_freed`.

    Attributes:
        collector: takes the value of each item that arrives, where the last stage is no sink.
        results: the channel that a streaming consumer reads; ``None`` otherwise.
        consuming: a streaming consumer works on a result.
        findings: what the engine itself has found; what its guards found is in `guarding`.
        gates: those of the stages with a limit.
        events: what is recorded of it.
        halted: nothing new starts any more.
        closed: the run has ended and given everything back.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        *,
        inline: bool = False,
        collector: Callable[[Any], None] | None = None,
        stream: bool = False,
        context: contextvars.Context | None = None,
        nested: bool = False,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.pipeline = pipeline
        self.inline = inline
        self.collector = collector
        self.context = context.copy() if context is not None else contextvars.copy_context()
        self.context.run(present.set, None)
        self.context.run(sync.within.set, (*sync.within.get(), self))
        self.private_pool = (
            nested and any(stage.on != "loop" for stage in pipeline.stages) and not inline
        )
        self.pool = lanes.Pool(1) if self.private_pool else lanes.shared()
        self.budget = (
            Budget(pipeline.memory_limit, self.loop) if pipeline.memory_limit is not None else None
        )
        self.halted = self.draining = self.cancelled = self.closed = False
        self.consuming = False
        self.done = self.failed = self.skipped = self.filtered = 0
        self.outputs = 0
        self.failures = Failures(pipeline)
        self.warnings: list[str] = []
        self.findings: list[Finding] = []
        self.books: Bookkeeping | None = None
        self.source_iterable: Any = None
        self.source_is_async = False
        self.total: int | None = None
        self.began = perf_counter()
        self.ended: float | None = None
        self.report: Report | None = None
        self.results: Channel | None = None
        self.gates: list[Gate] = []
        self._tasks: set[asyncio.Task[Any]] = set()
        self._dismissed: set[asyncio.Task[None]] = set()
        self._scheduled = False
        self.wants_slot: dict[PoolSegment, float] = {}
        self.lookout = Lookout(self)
        self.guarding = Guarding(self)
        self._hosted = False
        self._watched: strays.Watched | None = None
        self._closing: asyncio.Task[Report] | None = None
        self._loop_thread = threading.get_ident()
        self.finished: asyncio.Future[None] = self.loop.create_future()

        self.segments: list[Segment] = plan.build(self, pipeline.stages)
        self.ordered = [segment for segment in self.segments if isinstance(segment, Ordered)]
        barriers = [segment for segment in self.segments if isinstance(segment, Barrier)]
        for barrier, following in pairwise(barriers):
            barrier.next_barrier = following
        self.first_barrier = barriers[0] if barriers else None
        self.pool_segments = [s for s in reversed(self.segments) if isinstance(s, PoolSegment)]
        for segment in self.segments:
            segment.inbox = Channel(self.loop, segment.capacity())
        for segment, following_segment in pairwise(self.segments):
            segment.out = following_segment.inbox
        if stream and not (pipeline.stages and pipeline.stages[-1].kind == "for_each"):
            self.results = Channel(self.loop, 64)
            if self.segments:
                self.segments[-1].out = self.results
        first = (
            self.segments[0].inbox if self.segments else self.results or Channel(self.loop, 1 << 30)
        )
        self.events = record(self)
        self.source = Source(self, first)
        self._open = len(self.segments) + 1

    # Life.

    async def start(self) -> None:
        """Open the ledger, start the workers, begin to read the source."""
        pipeline = self.pipeline
        self._watched = strays.attach(self.loop)
        if not self.inline:
            sync.hosts(self.loop)
            self._hosted = True
        if pipeline.ledger is not None:
            from tournant.engine.bookkeeping import Bookkeeping

            books = Bookkeeping(
                pipeline.ledger,
                pipeline.version,
                lambda error: self._threadsafe(self._fatal, error),
            )
            await books.open()
            self.books = books
        try:
            source = pipeline.source() if pipeline.source_is_factory else pipeline.source
        except BaseException as error:
            self.source_failed(plain(error))
            source = ()
        self.source_iterable = source
        self.source_is_async = hasattr(source, "__aiter__")
        try:
            self.total = len(source)
        except TypeError:
            self.total = None
        if self.books is None:
            crew.prestart(self)
        if self.budget is not None:
            self.budget.on_room = self.schedule
        for segment in self.segments:
            segment.start()
        if not self.segments and self.results is None:
            self.spawn(self.source.discard(), "tournant discard")
        self.spawn(self.source.feed(), "tournant source")
        self.lookout.start()
        self.guarding.start()

    async def wait(self) -> None:
        """Wait until every segment is done."""
        await asyncio.shield(self.finished)

    async def close(self) -> Report:
        """Give everything back, check the sum, and return the report.

        Raises:
            LostItems: the inputs don't add up.
            PipelineFailed: the run was stopped by failures.
            TournantError: the source or the ledger failed.
        """
        if self._closing is None:
            # A task of its own: whoever waits for it may be cancelled, and several may wait.
            self._closing = self.loop.create_task(self._close(), name="tournant close")
            self._closing.add_done_callback(lambda task: task.cancelled() or task.exception())
        cancelled: asyncio.CancelledError | None = None
        while not self._closing.done():
            try:
                await asyncio.wait([self._closing])
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is not None:
            raise cancelled
        return self._closing.result()

    @property
    def needs_slots(self) -> bool:
        """Whether it can't come to its end without a slot that others may hold."""
        return not self.private_pool and any(not s.blocking for s in self.pool_segments)

    @property
    def closing(self) -> bool:
        """Whether `close` has been called."""
        return self._closing is not None

    async def _close(self) -> Report:
        self.ended = perf_counter()
        self.lookout.stop()
        self.guarding.stop()
        self.source.stop()
        if not self.cancelled:
            # Once is enough: a second time would break into what a call does to clean up.
            for task in list(self._tasks):
                task.cancel()
        if self._tasks:
            await asyncio.wait(list(self._tasks), timeout=_CANCEL_SECONDS)
        self.warnings += crew.left_behind(self, len(self._tasks))
        self.closed = True
        if self._watched is not None:
            self._watched.leave(self.loop)
        if self._hosted:
            sync.hosts_no_more(self._loop_thread, self.loop)
        self.pool.slots.forget(self)
        await crew.leave(self)
        self._check_share(final=True)
        if self.books is not None:
            try:
                await self.books.flush()
            except TournantError as error:
                self.failures.fatal.append(error)
        if self.budget is not None:
            self.budget.open()
        self.report = summary.build_report(self)
        if self.books is not None:
            try:
                await self.books.close(self.report)
            except TournantError as error:
                self.failures.fatal.append(error)
        summary.check_sum(self, self.report)
        self.failures.raise_for(self.report)
        return self.report

    # Stopping early.

    def drain(self) -> None:
        """Take no more inputs and finish what is in flight. May be called from any thread."""
        self._threadsafe(self._drain)

    def _drain(self) -> None:
        self.draining = True
        self.source.stop()

    def cancel(self) -> None:
        """Give up what is in flight. May be called from any thread."""
        self._threadsafe(self._cancel)

    def _cancel(self) -> None:
        if self.closed or self.cancelled:
            return
        self.cancelled = True
        self._halt()
        for segment in self.segments:
            segment.cancel()
        for task in list(self._tasks):
            task.cancel()
        if not self.finished.done():
            self.finished.set_result(None)

    def _halt(self) -> None:
        """Start nothing new; what is in work may end."""
        if self.halted:
            return
        self.halted = True
        self.source.stop()
        if self.budget is not None:
            self.budget.open()
        for segment in self.segments:
            segment.halt()
        if self.results is not None:
            self.results.clear()
            self.results.close()

    def _threadsafe(self, callback: Callable[..., None], *args: Any) -> None:
        if threading.get_ident() == self._loop_thread:
            callback(*args)
            return
        try:
            self.loop.call_soon_threadsafe(callback, *args)
        except RuntimeError:
            if not self.closed:
                raise RunClosed("the run's event loop is closed") from None

    def _fatal(self, error: Exception) -> None:
        """The run can't go on: its source or its ledger failed."""
        if not any(error is known for known in self.failures.fatal):
            self.failures.fatal.append(error)
        self._halt()

    def source_failed(self, error: Exception) -> None:
        """The source raised: what came before goes through, then the run fails."""
        if not isinstance(error, SourceFailed):
            failed = SourceFailed(f"the source raised {type(error).__name__}: {error}")
            failed.__cause__ = error
            error = failed
        self.failures.fatal.append(error)

    # Tasks and slots.

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Start a task that the run owns; if it raises, that is a bug and ends the run."""
        task = self.loop.create_task(work, name=name, context=self.context.copy())
        self._tasks.add(task)
        task.add_done_callback(self._task_done)
        return task

    def dismiss(self, task: asyncio.Task[None]) -> None:
        """Cancel a task of the run that has nothing left to do, while the run goes on."""
        self._dismissed.add(task)
        task.cancel()

    def owns(self, task: asyncio.Task[Any]) -> bool:
        """Tell whether a task is one of the run's own. May be called from any thread."""
        return task in self._tasks

    def _task_done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if task.cancelled() and not (self.cancelled or self.ended or task in self._dismissed):
            error = crew.cancelled_by_others(task)
        if error is not None:
            self._fatal(plain(error))
            self._cancel()

    def segment_done(self) -> None:
        """A segment (or the source) has passed on its last item."""
        self._open -= 1
        if self._open == 0 and not self.finished.done():
            self.finished.set_result(None)

    def schedule(self) -> None:
        """Look for work that a slot could do, soon."""
        if not self._scheduled and self.pool_segments:
            self._scheduled = True
            self.loop.call_soon(self._dispatch)

    def slot_freed(self) -> None:
        """A slot is kept for this run; called from any thread."""
        try:
            self.loop.call_soon_threadsafe(self.schedule)
        except RuntimeError:  # The loop was closed under the run.
            self.pool.slots.forget(self)

    def _dispatch(self) -> None:
        """Give slots to the segments closest to the sink that have work and room."""
        self._scheduled = False
        if self.closed:
            return
        wants = self.wants_slot
        for segment in self.pool_segments:
            while segment.ready():
                if not segment.acquire():
                    wants.setdefault(segment, perf_counter())
                    break
                since, waited = wants.pop(segment, None), 0.0
                if since is not None:
                    waited = perf_counter() - since
                    segment.stats[0].wait_slot += waited
                try:
                    segment.dispatch(waited)
                except Exception as error:
                    # The pool was shut down, or the machine has no thread left.
                    segment.release()
                    self._fatal(error)
                    return
            else:
                wants.pop(segment, None)
        if not wants:
            self.pool.slots.give_up(self)

    # Items.

    def enter(self, item: Item) -> None:
        """Count the bytes of an item that comes from the source."""
        assert self.budget is not None
        item.size = size_of(item.value)
        self.budget.add(item.size)

    def change(self, item: Item, value: Any) -> None:
        """Give an item the value that a stage made of it."""
        item.value = value
        if self.budget is not None:
            size = size_of(value)
            self.budget.add(size - item.size)
            item.size = size

    def end_item(self, item: Item, state: int) -> None:
        """Count an item as ended."""
        if self.budget is not None:
            self.budget.add(-item.size)
            item.size = 0
        item.origin.end(state, self)

    def arrive(self, item: Item) -> None:
        """An item has come through the last stage."""
        self.outputs += 1
        if self.collector is not None:
            self.collector(item.value)
        self.end_item(item, ARRIVED)

    def arrive_many(self, items: list[Item], values: list[Any] | None) -> None:
        """Items have come through the last stage; `values` where somebody may want them."""
        self.outputs += len(items)
        if self.collector is not None and values is not None:
            for value in values:
                self.collector(value)
        if self.budget is not None:
            for item in items:
                self.end_item(item, ARRIVED)
            return
        plain = self.books is None and not self.ordered
        done: list[int] = []
        for item in items:
            origin = item.origin
            if (
                plain
                and origin.pending == 1
                and not origin.state
                and type(origin) is Input
                and origin.barrier is None
            ):
                # The common case by far, an input with one descendant: what `end` and `close_input` come to.
                origin.pending = 0
                origin.state = ARRIVED | CLOSED
                done.append(origin.index)
            else:
                origin.end(ARRIVED, self)
        self.done += len(done)
        if done and self.events.on:
            self.events.inputs.ended += done

    def close_input(self, origin: Input) -> None:
        """Every descendant of an input has ended: count its outcome."""
        state = origin.state
        if state & CLOSED:
            raise LostItems(f"the input {short(origin.key)} ended twice. This is a bug in Tournant")
        origin.state = state | CLOSED
        if state & FAILED:
            self.failed += 1
            outcome = "failed"
            if self.pipeline.max_failures is not None:
                self._check_share()
        elif state & DROPPED and not state & ARRIVED:
            self.filtered += 1
            outcome = "filtered"
        else:
            self.done += 1
            outcome = "done"
        if self.events.on:
            self.events.inputs.ended.append(origin.index)
            if outcome != "done":
                self.events.inputs.outcomes[origin.index] = outcome
        if self.ordered:
            for barrier in self.ordered:
                barrier.input_closed(origin)
        if self.books is not None and outcome != "failed":
            self.books.settled(origin, outcome)

    def window_moved(self) -> None:
        """An ordered stage has released an input: the source may go on."""
        self.source.window_moved()

    # Failures.

    def fail(self, item: Item, stage: Stage, error: Exception, attempts: int) -> None:
        """An item has failed for good."""
        failure = self.failures.add(stage, item.origin.key, error, attempts)
        if self.books is not None:
            for origin in inputs_of(item.origin):
                if not origin.state & FAILED:
                    self.books.failed(origin, failure)
        self.end_item(item, FAILED)
        if self.failures.stops(stage):
            self._halt()

    def _check_share(self, *, final: bool = False) -> None:
        if self.failures.fatal:
            return
        error = self.failures.too_many(
            self.failed, self.done + self.failed + self.filtered, final=final
        )
        if error is not None:
            self._fatal(error)

    def snapshot(self) -> RunSnapshot:
        """Return the run as it stands. May be called from any thread."""
        return summary.snapshot(self)
