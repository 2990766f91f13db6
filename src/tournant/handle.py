"""A run in progress, as its user sees it: iterate over its results, watch it, drain or cancel it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING, Any

from tournant.engine.lineage import ARRIVED, Item
from tournant.engine.run import Run
from tournant.errors import RunClosed
from tournant.report import Report, RunSnapshot
from tournant.sync import LoopThread, outcome, refuse_deadlock, refuse_self_wait

if TYPE_CHECKING:
    from tournant.pipeline import Pipeline

#: Results handed to a synchronous consumer at once.
_FETCH = 256


class RunHandle:
    """A run in progress: what ``async with pipeline.open() as run`` gives.

    Iterating gives the results; several tasks may share them. A result counts as done when its consumer comes back for the
    next one. Leaving the ``async with`` before the end cancels the run.
    """

    def __init__(self, pipeline: Pipeline, *, inline: bool, nested: bool) -> None:
        self._pipeline = pipeline
        self._inline = inline
        self._nested = nested
        self._run: Run | None = None
        #: What each task that iterates works on.
        self._taken: dict[asyncio.Task[Any] | None, Item] = {}

    async def __aenter__(self) -> RunHandle:
        """Start the run."""
        if self._run is not None:
            raise RunClosed(
                "this run has been opened before; call pipeline.open() again for another run"
            )
        self._run = Run(self._pipeline, inline=self._inline, stream=True, nested=self._nested)
        try:
            await self._run.start()
        except BaseException:
            self._run._cancel()
            with contextlib.suppress(Exception):
                await self._run.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: object
    ) -> None:
        """Cancel the run if it has not ended, and wait until nothing of it is left."""
        run = self._running()
        if run.report is not None:
            return
        if not run.closing:
            self._acknowledge_all()
        if not run.finished.done() or (run.results is not None and run.results.items):
            run._cancel()
        try:
            await run.close()
        except Exception:
            if kind is None or issubclass(kind, GeneratorExit):
                raise

    def __aiter__(self) -> AsyncIterator[Any]:
        """Iterate over the results as they come."""
        return self

    async def __anext__(self) -> Any:
        """Return the next result; the one before counts as done now."""
        run = self._running()
        task = asyncio.current_task()
        if task in self._taken:
            self._acknowledge(self._taken.pop(task))
        results = run.results
        if results is not None:
            items = results.items
            while not items and not results.closed:
                self._refuse_self_wait("`async for` over a run's results")
                await results.wait_items()
            if items:
                item = self._taken[task] = items.popleft()
                run.consuming = True
                if items:
                    results.pass_on()
                if (results.writers or results.room_wanted) and len(items) <= results.low:
                    results.removed()
                return item.value
        self._refuse_self_wait("`async for` over a run's results")
        await run.wait()
        if not run.closing:
            # What other tasks have taken has been delivered.
            self._acknowledge_all()
        await run.close()
        raise StopAsyncIteration

    async def wait(self) -> Report:
        """Wait for the end of a run whose results nobody iterates over; return its report."""
        run = self._running()
        self._refuse_self_wait("`await run.wait()`")
        if run.results is not None:
            async for _ in self:
                pass
        await run.wait()
        return await run.close()

    @property
    def report(self) -> Report:
        """The report, once the run has ended.

        Raises:
            RunClosed: it has not ended yet.
        """
        report = self._running().report
        if report is None:
            raise RunClosed("the run has not ended yet; its report comes after the last result")
        return report

    def snapshot(self) -> RunSnapshot:
        """Return the run's counts as they stand. May be called from any thread."""
        return self._running().snapshot()

    def drain(self) -> None:
        """Take no more inputs and finish what is in flight. May be called from any thread."""
        self._running().drain()

    def cancel(self) -> None:
        """Give up what is in flight. May be called from any thread."""
        self._running().cancel()

    def _running(self) -> Run:
        if self._run is None:
            raise RunClosed("the run has not been opened; use `async with pipeline.open() as run:`")
        return self._run

    def _refuse_self_wait(self, call: str) -> None:
        run = self._running()
        refuse_self_wait(run, call, needs_slot=run.needs_slots)

    def _acknowledge(self, item: Item) -> None:
        run = self._running()
        run.consuming = bool(self._taken)
        if not run.closing:
            run.outputs += 1
            run.end_item(item, ARRIVED)

    def _acknowledge_all(self) -> None:
        while self._taken:
            self._acknowledge(self._taken.popitem()[1])

    # For synchronous consumers: several results by one hop between the threads.

    async def _fetch(self, consumed: list[Item]) -> list[Item]:
        """Count `consumed` as done and return the next results; none when the run has ended."""
        run = self._running()
        run.consuming = False
        for item in consumed:
            run.outputs += 1
            run.end_item(item, ARRIVED)
        consumed.clear()  # whoever leaves must not count them again
        results = run.results
        if results is not None:
            items = results.items
            while not items and not results.closed:
                await results.wait_items()
            if items:
                taken = [items.popleft() for _ in range(min(_FETCH, len(items)))]
                run.consuming = True
                results.removed()
                return taken
        await run.wait()
        await run.close()
        return []


class Watched:
    """What ``on_start`` receives: a run that somebody else waits for.

    Its methods may be called from any thread.
    """

    def __init__(self, run: Run) -> None:
        self._run = run

    @property
    def stopped(self) -> bool:
        """Whether somebody drained or cancelled the run before its source had ended."""
        return self._run.draining or self._run.cancelled

    @property
    def report(self) -> Report | None:
        """The run's report once it has ended, also where it failed or was cancelled; ``None`` before."""
        return self._run.report

    def snapshot(self) -> RunSnapshot:
        """Return the run's counts as they stand."""
        return self._run.snapshot()

    def drain(self) -> None:
        """Take no more inputs and finish what is in flight."""
        self._run.drain()

    def cancel(self) -> None:
        """Give up what is in flight."""
        self._run.cancel()


async def execute(
    pipeline: Pipeline,
    *,
    inline: bool,
    nested: bool,
    collector: Callable[[Any], None] | None = None,
    on_start: Callable[[Watched], None] | None = None,
    started: Callable[[Run], None] | None = None,
) -> Report:
    """Run a pipeline to its end on the present loop."""
    run = Run(pipeline, inline=inline, collector=collector, nested=nested)
    if started is not None:
        started(run)
    try:
        await run.start()
        if on_start is not None:
            on_start(Watched(run))
        await run.wait()
    except BaseException:
        # It could not start, the caller was cancelled, or its on_start raised.
        run._cancel()
        with contextlib.suppress(Exception):
            await run.close()
        raise
    return await run.close()


def stream(pipeline: Pipeline, *, inline: bool, nested: bool) -> Iterator[Any]:
    """Iterate over a run's results from synchronous code."""
    with LoopThread() as thread:
        handle = RunHandle(pipeline, inline=inline, nested=nested)
        outcome(thread.submit(handle.__aenter__))
        batch: list[Item] = []
        consumed = 0
        try:
            while True:
                refuse_deadlock("next() on pipeline.iter()", "`async with pipeline.open() as run`")
                handle._refuse_self_wait("next() on pipeline.iter()")
                # Until it has happened the consumer may still leave, with all of these in its hands.
                batch = outcome(thread.submit(handle._fetch, batch))
                consumed = 0
                if not batch:
                    return
                for item in batch:
                    consumed += 1
                    yield item.value
        finally:

            async def leave() -> None:
                run = handle._running()
                if not run.closing:
                    # The one at which the consumer left has been seen, but it never came back for the next.
                    for item in batch[: max(0, consumed - 1)]:
                        run.outputs += 1
                        run.end_item(item, ARRIVED)
                    if consumed:
                        run._cancel()  # also when it has ended: what was fetched and not seen is not done
                    await handle.__aexit__(GeneratorExit, None, None)

            left = thread.submit(leave)
            # A generator that nobody refers to any more is closed wherever it is collected, perhaps on its own loop.
            thread.leave_after(left) if thread.here else outcome(left)
