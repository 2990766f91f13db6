"""A run and the shared pool's workers: getting them ready, and taking leave of them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import TYPE_CHECKING

from tournant.errors import StageExit
from tournant.stages import callable_name

if TYPE_CHECKING:
    from tournant.engine.run import Run

#: Seconds that workers get to close their state when the run has ended.
_CLOSE_SECONDS = 10.0


def prestart(run: Run) -> None:
    """Start processes, and build state, while the first items are being read."""
    slots = run.pool.slots.count
    most = slots if run.total is None else min(slots, run.total)
    for kind in ("threads", "processes"):
        segments = [s for s in run.pool_segments if s.kind == kind]
        if kind == "threads":
            segments = [s for s in segments if any(stage.state is not None for stage in s.stages)]
        if segments and most:
            count = min(most, max(s.limit for s in segments))
            run.pool.prestart(kind, count, [s.spec for s in reversed(segments)])


def cancelled_by_others(task: asyncio.Task[None]) -> StageExit:
    """Return the error that ends a run one of whose tasks was cancelled by somebody else than the run."""
    return StageExit(
        f"the task {task.get_name()!r} of this run was cancelled, by the stage that it runs (asyncio.current_task().cancel(), or a library "
        "that does so) or by somebody who cancels every task of the loop; to end a run use its cancel() or drain()"
    )


def left_behind(run: Run, tasks: int) -> Iterator[str]:
    """Say what still goes on though the run has ended: so many of its tasks, and threads that nobody can stop."""
    if tasks:
        yield (
            f"{tasks} stage call(s) went on after they were cancelled: "
            "a coroutine must let asyncio.CancelledError pass"
        )
    stuck = sum(len(segment.stuck) for segment in run.pool_segments)
    if stuck:
        yield (
            f"{stuck} thread(s) still run a call that timed out; Python can't stop a thread, so use "
            'on="processes" where calls may hang'
        )


async def leave(run: Run) -> None:
    """Have the workers drop the run's segments, and wait until their state is closed."""
    dropped = run.pool.forget([spec for segment in run.pool_segments for spec in segment.specs()])
    if dropped:
        closings = {asyncio.wrap_future(future): spec for spec, future in dropped}
        closed, late = await asyncio.wait(closings, timeout=_CLOSE_SECONDS)
        problems: list[tuple[asyncio.Future[None], object]] = [
            (future, future.exception()) for future in closed if future.exception() is not None
        ]
        problems += [(future, "it has not come to an end") for future in late]
        for future, problem in problems:
            names = ", ".join(callable_name(fn) for _, fn, _ in closings[future].steps)
            run.warnings.append(f"closing the PerWorker state of {names}: {problem!r}")
    if run.private_pool:
        await asyncio.to_thread(run.pool.close)
