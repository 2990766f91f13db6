"""A run in the background: what a GUI's event handler, or any synchronous code that must not wait, starts a pipeline with."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable
from typing import TYPE_CHECKING

from tournant.errors import RunClosed
from tournant.report import Report, RunSnapshot
from tournant.sync import LoopThread, outcome, refuse_deadlock, refuse_self_wait

if TYPE_CHECKING:
    from tournant.engine.run import Run
    from tournant.pipeline import Pipeline


class BackgroundRun:
    """A run on a thread of its own, started by `Pipeline.start`. All its methods may be called from any thread.

    Nothing but `wait` ever waits, so an event handler may call everything else. A run that nobody waits for goes on until it has
    ended or the program ends. As a context manager it is cancelled when the block is left before it has ended.
    """

    def __init__(self, pipeline: Pipeline, *, inline: bool, nested: bool) -> None:
        from tournant.handle import Watched, execute

        self._thread = LoopThread()
        self._looked_at = False
        known: concurrent.futures.Future[Run] = concurrent.futures.Future()
        self._thread.__enter__()

        async def work() -> Report:
            try:
                return await execute(
                    pipeline, inline=inline, nested=nested, started=known.set_result
                )
            except BaseException as error:
                if not known.done():
                    known.set_exception(error)
                raise

        self._future = self._thread.submit(work)
        self._thread.leave_after(self._future)
        try:
            self._run = outcome(known)
        except BaseException:
            self._looked_at = True
            raise
        self._watched = Watched(self._run)

    def __repr__(self) -> str:
        """Return what it is at, for a notebook's cell."""
        now = self.snapshot()
        state = "running" if not self.done else "ended" if self._error() is None else "failed"
        total = f" of {now.total:,}" if now.total is not None else ""
        return (
            f"<BackgroundRun {state} after {now.elapsed:.1f} s: {now.done:,}{total} inputs done, {now.failed:,} failed, "
            f"{now.sourced - now.done - now.failed - now.skipped - now.filtered:,} under way>"
        )

    def __enter__(self) -> BackgroundRun:
        return self

    def __exit__(self, *_: object) -> None:
        """Cancel the run if it has not ended, and wait until nothing of it is left."""
        if not self.done:
            self.cancel()
            refuse_deadlock("leaving `with pipeline.start()`", "`async with pipeline.open()`")
            concurrent.futures.wait([self._future])
        self._thread.join()

    def __del__(self) -> None:
        future = getattr(self, "_future", None)
        if future is not None and future.done() and not self._looked_at:
            error = self._error()
            if error is not None:
                import logging

                logging.getLogger("tournant").error(
                    "a run in the background failed, and nobody asked for its outcome: %s: %s (call wait() on what "
                    "pipeline.start() returns)", type(error).__name__, error,
                )  # fmt: skip

    @property
    def done(self) -> bool:
        """Whether the run has ended, well or not, and has given everything back."""
        return self._future.done()

    @property
    def report(self) -> Report:
        """The report, once the run has ended.

        Raises:
            RunClosed: it has not ended yet.
            TournantError: what it ended with; see `Pipeline.run`.
        """
        if not self.done:
            raise RunClosed(
                "the run has not ended yet; ask `done` before, or `wait()` for it, or watch its snapshot()"
            )
        self._looked_at = True
        return self._future.result()

    def wait(self, timeout: float | None = None) -> Report:
        """Wait for the end of the run and return its report. KeyboardInterrupt ends the waiting and not the run.

        Args:
            timeout: seconds to wait at most. Default: no limit.

        Raises:
            TimeoutError: it has not ended within `timeout` seconds; it goes on.
            TournantError: what it ended with; see `Pipeline.run`.
            WouldDeadlock: called where the run would have to wait for this very call: on the thread of a run's loop, in one of its own
                stages, or on a worker of the pool that it needs.
        """
        if not self.done:
            refuse_deadlock("BackgroundRun.wait()", "`await pipeline.arun()`")
            refuse_self_wait(self._run, "BackgroundRun.wait()", needs_slot=self._run.needs_slots)
        if timeout is None:
            self._looked_at = True
            try:
                return outcome(self._future)
            finally:
                self._thread.join()
        concurrent.futures.wait([self._future], timeout)
        if not self.done:
            raise TimeoutError(f"the run has not ended within {timeout:g} s; it goes on")
        return self.report

    def add_done_callback(self, callback: Callable[[BackgroundRun], object]) -> None:
        """Have `callback` called with this object when the run has ended: on the run's thread, or at once if it has ended already.

        A GUI's widgets belong to its own thread: have the callback post an event there, or ask `done` by a timer.
        """
        self._future.add_done_callback(lambda _: callback(self))

    def snapshot(self) -> RunSnapshot:
        """Return the run's counts as they stand."""
        return self._watched.snapshot()

    def drain(self) -> None:
        """Take no more inputs and finish what is in flight. Does not wait for that."""
        if not self.done:
            self._watched.drain()

    def cancel(self) -> None:
        """Give up what is in flight. Does not wait until that has ended."""
        if not self.done:
            self._watched.cancel()

    def _error(self) -> BaseException | None:
        if self._future.cancelled():
            return None
        return self._future.exception()
