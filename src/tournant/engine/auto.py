"""``on="auto"``: a stage that begins in threads, and moves to processes if its threads stand in each other's way.

The scout tells within some 15 ms whether they do. Then worker processes start, on cores that a stage behind the interpreter lock leaves
idle, while the threads work on. Each process that is ready takes the next chunk in place of a thread; what threads have begun they
finish. So nothing is lost and nothing runs twice. A stage that can't move stays, and the report says why; one whose values turn out not
to travel goes back to threads.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import sys
from collections.abc import Collection
from time import perf_counter, thread_time
from typing import TYPE_CHECKING, Any

from tournant.engine.channel import Attempt
from tournant.engine.chunk import Chunk
from tournant.engine.lineage import Item
from tournant.engine.pool_segment import PROCESS_SECONDS, PoolSegment
from tournant.engine.scout import QUICK, Scout
from tournant.errors import NotPicklable, TournantError
from tournant.guards.finding import Finding
from tournant.guards.gil import Scaling, gil_enabled
from tournant.pool.lanes import Lane, Spec, World
from tournant.pool.steps import Dropped, Failed, Part

if TYPE_CHECKING:
    from tournant.engine.run import Run
    from tournant.stages import Stage

#: Seconds of work, one after the other, that must be left for a move to pay: with processes at hand, and with processes to start.
_WORTH_WARM, _WORTH_COLD = 0.01, 0.1
#: Seconds of evidence that it takes to start processes.
_SURE = 2 * QUICK
#: Throughput that processes must promise over threads.
_GAIN = 1.2
#: Seconds that an item costs this process when it goes to another, besides its pickling.
_HOP = 5e-6
#: Bytes per second through a pipe.
_PIPE = 1.5e9
#: Seconds for which the stage has only one thread, unless it is known before whether more of them help.
_SINGLE = 0.01
#: Seconds after which a process that was started is taken to be there.
_BOOTED = 0.3
_NOTHING: Any = object()


class AutoSegment(PoolSegment):
    """Fused ``on="auto"`` stages.

    Attributes:
        moved: when it moved to processes; 0 before.
    """

    def __init__(self, run: Run, stages: list[Stage], world: World) -> None:
        super().__init__(run, stages, world)
        # Long ones from the beginning: threads that often pause would hide that they wait for each other.
        self._seconds = PROCESS_SECONDS
        self.moved = 0.0
        self._world = world
        self._in_threads = self.spec
        self._in_processes: Spec | None = None
        self._starting = self._spawning = 0
        self._single = False
        self._ready = 0
        self._settled = False
        self._scout: Scout | None = None
        self._sample: Any = _NOTHING
        self._reason: str | None = None
        self._scaling: Scaling | None = None
        #: Native ids of the threads that have worked here.
        self._lanes: set[int] = set()

    def specs(self) -> list[Spec]:
        """Return both, if there are two."""
        return [self._in_threads] + ([self._in_processes] if self._in_processes else [])

    def start(self) -> None:
        """Connect to the scheduler, and look how the threads get on."""
        super().start()
        slots = self.run.pool.slots.count
        if self.limit > 1 and slots > 1 and gil_enabled() and sys.platform != "win32":
            self._scout = Scout(
                self._names(), self._threads, self._prepare, self._found, self._is_free
            )
            self._single = True
            self.run.loop.call_later(_SINGLE, self._more_threads)
            self._scout.start()

    def ready(self) -> bool:
        """Tell whether there is work to start and room behind it; while processes start, one thread is as good as several.

        While they are being spawned none is better: that takes a few steps, and would have to wait for the lock at each.
        """
        if self._single and self.working:
            return False
        if self._starting and (self._spawning or self.working > self._ready):
            return False
        return super().ready()

    def dispatch(self, waited: float = 0.0) -> None:
        """Start one chunk where it is to run now, or resume one."""
        here = self._place()
        if here == "processes" and not self.moved:
            self._move()
        if here != self.kind:
            self.kind = here
            self.spec = self._in_processes or self.spec if here == "processes" else self._in_threads
        super().dispatch(waited)
        if self._scout is not None and not self._in_processes:
            for chunk in self.chunks:
                thread = chunk.lane.thread.native_id if chunk.lane is not None else None
                if thread is not None and thread not in self._lanes:
                    self._scout.join(thread)
                    self._lanes.add(thread)

    def _place(self) -> str:
        if not self._ready or self._settled:
            return "threads"
        if not self._starting:
            return "processes"
        # Some processes are still starting: those that are ready work beside the threads.
        busy = sum(
            chunk.lane is not None and chunk.lane.kind == "processes" for chunk in self.chunks
        )
        return "processes" if busy < self._ready else "threads"

    def on_part(self, chunk: Chunk, part: Part) -> None:
        """Take a part of a chunk's results, and keep one of them to see whether it could travel."""
        if (
            not self._in_processes
            and part.values
            and type(part.values[-1]) not in (Failed, Dropped)
        ):
            if self._sample is _NOTHING and self._scout is not None:
                # What the first call has imported says nothing about the others.
                self._scout.begin()
            self._sample = part.values[-1]
        super().on_part(chunk, part)
        if chunk.abandoned:
            # Of a chunk that was given up the run goes on with what is left of it.
            self.run.schedule()

    def on_left(self, chunk: Chunk) -> None:
        """A thread has stopped in the middle of a chunk; what it has not begun runs elsewhere."""
        if chunk.recalled and not chunk.abandoned:
            rest = self._unreported(chunk)
            items = [row for unit in rest for row in (unit if isinstance(unit, list) else [unit])]
            self._not_begun(len(items))
            if not self.run.halted:
                self.inbox.items.extendleft(reversed(items))
        super().on_left(chunk)

    def on_failed(self, chunk: Chunk, error: BaseException) -> None:
        """A chunk could not start; where that was in a process, its items run in threads."""
        if not _in_process(chunk) or chunk.abandoned or self.run.halted:
            super().on_failed(chunk, error)
            return
        self._go_back(f"a worker process could not begin ({type(error).__name__}: {error})")
        self._alone(chunk, self._unreported(chunk), deaths=0)
        self._chunk_over(chunk)
        self.run.schedule()

    def _take_flat(self, chunk: Chunk, part: Part) -> None:
        """Take children as far as they could travel from a process; from there on their parent runs again in a thread."""
        stop = _first_that_stayed(part) if part.odd and _in_process(chunk) else None
        if stop is None or self.run.halted:
            super()._take_flat(chunk, part)
            return
        error, children, ends = stop
        assert part.ends is not None
        kept = part.ends[:ends]
        if chunk.hold:
            # A retry begins with the first child, so none may have been passed on.
            children = kept[-1][0] if kept else 0
        part.values, part.ends = part.values[:children], kept
        part.times = [
            times[
                : sum(type(what) not in (Failed, Dropped) or what.step >= step for _, what in kept)
            ]
            for step, times in enumerate(part.times)
        ]
        super()._take_flat(chunk, part)
        self._go_back(str(error))
        self._alone(chunk, self._unreported(chunk), deaths=0)
        chunk.abandon()

    def _hold_back(self, chunk: Chunk) -> None:
        """Let a fan-out in work go on, unless it has been given up."""
        if not chunk.abandoned:
            super()._hold_back(chunk)

    # On the scout's thread.

    def _threads(self) -> Collection[int]:
        """Return the native ids of the threads that share the work, while there is enough for two of them."""
        return self._lanes if self.working and not self._in_processes else ()

    def _prepare(self) -> None:
        """Find out whether the stage could move, and load what that would take, before the threads are in full swing."""
        from tournant.engine.movable import why_not

        importlib.import_module("tournant.pool.processes")
        self._reason = why_not(self.stages)

    def _found(self, scaling: Scaling) -> bool:
        """Decide what to do about threads that don't scale; tell whether to go on looking."""
        if self._scout is None or self._scout.stopped:
            return False
        if self._sample is _NOTHING or not self.cost or not self.inbox.items:
            return True  # Wait until it is known what an item costs, and that there is more to do than one thread can.
        reason = self._reason or self._costs_too_much(scaling)
        if reason is not None:
            with contextlib.suppress(RuntimeError):  # The run may be over.
                self.run.loop.call_soon_threadsafe(self._stay, reason, scaling)
            return False
        warm = self.run.pool.idle_lanes("processes") > 0
        if not warm and scaling.seconds < _SURE:
            return True  # One long wait may be somebody else's, who imports or collects garbage; starting processes takes longer than to look again.
        if self._left(max(1.0, scaling.workers)) < (_WORTH_WARM if warm else _WORTH_COLD):
            return True
        # From here, and not from the loop: that waits for the lock like everybody else.
        self._begin_to_move(scaling)
        return False

    def _is_free(self) -> None:
        with contextlib.suppress(RuntimeError):  # The run may be over.
            self.run.loop.call_soon_threadsafe(self._more_threads)

    def _costs_too_much(self, scaling: Scaling) -> str | None:
        """Return why processes would be no faster: what the pickling of values takes."""
        from tournant.pool import wire

        values = [self._sample]
        waiting = self.inbox.items
        try:
            first: Item | None = waiting[0]
        except IndexError:
            first = None
        if first is not None:
            values.append([first.value] if self.batch else first.value)
        travel = 0.0
        for value in values:
            try:
                wire.dump(value)  # imports what that takes, so that the next time is the time
                began = thread_time()
                pieces = wire.dump(value)
            except Exception as error:
                return f"its values can't be pickled ({type(error).__name__}: {error})"
            size = sum(memoryview(piece).nbytes for piece in pieces)
            # Packed here and unpacked there, or the other way round, and through a pipe once.
            travel += 2 * (thread_time() - began) + size / _PIPE
        each = self.cost / max(1.0, scaling.workers)
        in_processes = min(self.limit / (each + travel), 1 / (_HOP + travel))
        if each and in_processes < _GAIN / each:
            return f"handing an item over would cost {1e6 * (_HOP + travel):.0f} us, as much as its work ({1e6 * each:.0f} us) can gain"
        return None

    def _left(self, workers: float) -> float:
        """Return the seconds of work that are left, one after the other; many where nobody knows."""
        run, stats = self.run, self.stats[0]
        entered = run.source.sourced
        if run.total is None or not entered or not stats.started:
            return float("inf")
        # What the inputs so far have become here, with what waits: so many will all of them become.
        expected = (stats.started + self.queued()) / entered * run.total
        units = max(1, self.batch)
        return float(max(0.0, expected - stats.left) / units * self.cost / workers)

    # On the loop.

    def _more_threads(self) -> None:
        """Let other threads join the first one."""
        if self._single:
            self._single = False
            self.run.schedule()

    def _names(self) -> str:
        return " + ".join(stage.name for stage in self.stages)

    def _stay(self, reason: str, scaling: Scaling) -> None:
        """It can't move: say why."""
        self._settled = True
        self._stop_looking()
        self._tell(
            f'stage {self._names()} (on="auto") stays in threads, of which only one at a time can run Python code ({_measured(scaling)}): '
            f'{reason}. Mend that, or give it on="processes" or on="threads" to say that you know'
        )

    def _begin_to_move(self, scaling: Scaling) -> None:
        """Take processes that are there, start those that are not, and let one thread go on meanwhile."""
        run = self.run
        if self._settled or run.halted or self.done:
            return
        self._scaling = scaling
        spec = Spec(
            [(s.kind, s.fn, s.state) for s in self.stages if s.fn is not None],
            run.context,
            self._world,
            takes_slot=True,
            part_bytes=self._share_of_memory(),
        )
        try:
            lanes = [run.pool.lane("processes") for _ in range(self.limit)]
        except TournantError:  # The pool was shut down: the next chunk tells.
            return
        cold = [lane for lane in lanes if not lane.since or perf_counter() - lane.since < _BOOTED]
        self._starting = self._spawning = len(cold)
        self._ready = len(lanes) - len(cold)
        self._in_processes = spec
        self._single = False
        for lane in lanes:
            if lane in cold:
                lane.jobs.put(functools.partial(self._get_ready, lane, spec))
            else:
                run.pool.put_back(lane)
        if not self.flat:
            for chunk in list(self.chunks):
                chunk.recalled = True

    def _get_ready(self, lane: Lane, spec: Spec) -> None:
        """Have a process start and define the stage; on the lane's thread."""
        problem: BaseException | None = None
        # The first that a lane does is to spawn its process, so that is over.
        with contextlib.suppress(RuntimeError):
            self.run.loop.call_soon_threadsafe(self._one_spawned)
        try:
            problem = lane.ready(spec)
        except BaseException as error:
            problem = error
        self.run.pool.put_back(lane)
        with contextlib.suppress(RuntimeError):  # The run may be over.
            self.run.loop.call_soon_threadsafe(self._one_ready, problem)

    def _one_spawned(self) -> None:
        self._spawning -= 1
        self.run.schedule()

    def _one_ready(self, problem: BaseException | None) -> None:
        self._starting -= 1
        if self._settled or self.run.closed:
            return
        if problem is not None:
            assert self._scaling is not None
            self._stay(
                f"it can't be set up in a worker process ({type(problem).__name__}: {problem})",
                self._scaling,
            )
            return
        self._ready += 1
        for chunk in list(self.chunks):
            # One more than there are slots for is at work: it makes room.
            if not self.flat and chunk.lane is not None and chunk.lane.kind == "threads":
                chunk.recalled = True
        self.run.schedule()

    def _move(self) -> None:
        assert self._scaling is not None
        self._stop_looking()
        self.moved = perf_counter()
        self.on = "processes"
        for stats in self.stats:
            stats.on = "processes"
        # What the threads measured counts the time that each waited for the others.
        self.cost /= max(1.0, self._scaling.workers)
        self._tell(
            f'stage {self._names()} (on="auto") moved to processes after {self.moved - self.run.began:.2f} s: in threads only one at a '
            f'time could run Python code ({_measured(self._scaling)}). Give it on="processes" to begin there'
        )

    def _go_back(self, why: str) -> None:
        if self._settled:
            return
        self._settled = True
        self.on = "threads"
        for stats in self.stats:
            stats.on = "threads"
        self._tell(
            f'stage {self._names()} (on="auto") went back to threads: {why}. The items concerned ran again there'
        )

    def _tell(self, text: str) -> None:
        self.run.warnings.append(text)
        self.run.findings.append(Finding("placement", text, stage=self.stages[0].name))

    def _stop_looking(self) -> None:
        if self._scout is not None:
            self._scout.stop()

    def _failed(self, chunk: Chunk, item: Item, step: int, error: Exception) -> bool:
        """Run an item again in a thread where only its way to or from a process has failed."""
        if not self._back_from(chunk, error):
            return super()._failed(chunk, item, step, error)
        before = chunk.attempt
        self._not_begun(1)
        self.inbox.again.append(Attempt(item, count=before.count if before is not None else 0))
        self.run.schedule()
        return True

    def _batch_failed(self, chunk: Chunk, rows: list[Item], error: Exception) -> bool:
        """The same for a batch."""
        if not self._back_from(chunk, error):
            return super()._batch_failed(chunk, rows, error)
        before = chunk.attempt
        self._not_begun(len(rows))
        self.inbox.again.append(
            Attempt(
                None,
                rows,
                count=before.count if before is not None else 0,
                final=before.final if before is not None else False,
            )
        )
        self.run.schedule()
        return True

    def _back_from(self, chunk: Chunk, error: Exception) -> bool:
        if not isinstance(error, NotPicklable) or self.run.halted or not _in_process(chunk):
            return False
        self._go_back(str(error))
        return True

    def halt(self) -> None:
        """Start nothing new."""
        self._stop_looking()
        super().halt()

    def finish(self) -> None:
        """Tell the next segment that no more will come."""
        self._stop_looking()
        super().finish()


def _in_process(chunk: Chunk) -> bool:
    return chunk.lane is not None and chunk.lane.kind == "processes"


def _first_that_stayed(part: Part) -> tuple[NotPicklable, int, int] | None:
    """Return what first failed only because it could not travel, with the children and the ends that come before it."""
    found: tuple[NotPicklable, int, int] | None = None
    ends = part.ends or []
    for n, (_, what) in enumerate(ends):
        if type(what) is Failed and what.step >= 0 and isinstance(what.error, NotPicklable):
            found = what.error, ends[n][0], n
            break
    for n, value in enumerate(part.values[: found[1] if found else None]):
        if type(value) is Failed and isinstance(value.error, NotPicklable):
            return value.error, n, sum(end <= n for end, _ in ends)
    return found


def _measured(scaling: Scaling) -> str:
    return f"{scaling.workers:.1f} at work used {scaling.cores:.1f} cores, and for {scaling.waited:.0%} of the time the lock was held"
