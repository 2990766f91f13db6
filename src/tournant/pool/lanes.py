"""The shared pool: lanes (a thread each, some with a process behind them) that are kept warm between runs.

A lane takes one `Job` at a time from anywhere and reports from its own thread; the caller carries the reports to its loop.
Idle lanes end by themselves after `IDLE` seconds.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import os
import queue
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextvars import Context, ContextVar
from time import monotonic
from typing import Any, Protocol

from tournant.errors import PoolClosed
from tournant.pool.leftovers import Leftovers, present
from tournant.pool.slots import Slots, cores
from tournant.pool.steps import Outbox, Part, bind, close_all, run_chunk

#: Seconds after which an idle lane ends.
IDLE = 30.0

_numbers = itertools.count(1)
#: Set where code runs on a slot of the pool, and in everything that takes over its context.
_on_slot: ContextVar[bool] = ContextVar("tournant_on_slot", default=False)


class Spec:
    """A segment's steps as lanes know them: what to call, and the surroundings to call it in.

    Attributes:
        number: unique in this process.
        steps: (kind, callable, `PerWorker` or None) per step.
        context: the caller's context; each call in a thread runs in a copy of it.
        world: what worker processes are to inherit; captured once per run.
        part_bytes: see `tournant.pool.steps.run_chunk`.
    """

    __slots__ = ("_payload", "context", "number", "part_bytes", "steps", "world")

    def __init__(
        self,
        steps: Sequence[tuple[str, Callable[..., Any], Any]],
        context: Context,
        world: World,
        *,
        takes_slot: bool,
        part_bytes: int | None = None,
    ) -> None:
        self.number = next(_numbers)
        self.steps = steps
        self.context = context
        if takes_slot:
            self.context = context.copy()
            self.context.run(_on_slot.set, True)
        self.world = world
        self.part_bytes = part_bytes
        self._payload: bytes | None = None

    @property
    def flat(self) -> bool:
        """Whether the last step fans out."""
        return self.steps[-1][0] == "flat_map"

    @property
    def closing(self) -> bool:
        """Whether there is state to close when the run has ended."""
        return any(state is not None and state.close is not None for *_, state in self.steps)

    def payload(self) -> bytes:
        """Return the steps, pickled for a worker process."""
        if self._payload is None:
            from tournant.pool import wire

            self._payload = b"".join(bytes(piece) for piece in wire.dump_in_band(list(self.steps)))
        return self._payload


class World:
    """The working directory, environment and import path that worker processes inherit, as they are now."""

    __slots__ = ("cwd", "environ", "log_levels", "path")

    def __init__(self) -> None:
        try:
            self.cwd: str | None = os.getcwd()
        except OSError:  # It has been removed.
            self.cwd = None
        self.environ = dict(os.environ)
        self.path = [entry or os.curdir for entry in sys.path]
        logging = sys.modules.get("logging")
        #: By logger name; the root logger's is "". A worker need not send what nobody would take.
        self.log_levels: dict[str, int] = {"": 30}
        if logging is not None:
            self.log_levels[""] = logging.getLogger().level
            for name, logger in list(logging.Logger.manager.loggerDict.items()):
                if getattr(logger, "level", 0):
                    self.log_levels[name] = logger.level


class Job(Protocol):
    """What a lane executes. Its methods are called on the lane's thread."""

    spec: Spec
    values: list[Any]
    skip: int
    hold: bool
    announce: bool
    abandoned: bool
    outbox: Outbox | None

    def began(self) -> None:
        """Take the news that a worker has begun with the chunk."""

    def part(self, part: Part) -> None:
        """Take a part of the results."""

    def wanted(self) -> bool:
        """Wait until there is room for more; return False when the rest is not wanted."""

    def left(self) -> None:
        """Take the news that the lane has stopped early because the rest is not wanted."""

    def failed(self, error: BaseException) -> None:
        """Take the news that the chunk could not even start: the state's factory raised, an import failed."""

    def died(self, how: str) -> None:
        """Take the news that the worker died before the last part."""


class Lane:
    """A thread of the pool.

    Attributes:
        name: unique in this process.
        pid: the process that executes: this one, or the lane's own.
        since: when a process of its own was started, by ``time.perf_counter``.
    """

    kind = "threads"

    def __init__(self, pool: Pool, name: str) -> None:
        self.pool = pool
        self.name = name
        self.pid = os.getpid()
        self.since = 0.0
        self.jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self.thread.start()

    def submit(self, job: Job) -> None:
        """Execute `job` on this lane's thread."""
        self.jobs.put(lambda: self._guarded(job))

    def _guarded(self, job: Job) -> None:
        try:
            if job.abandoned:
                self.pool.put_back(self)
                job.left()
            else:
                self.execute(job)
        except BaseException as error:
            # A bug in the lane itself: the run must hear of it rather than wait for ever.
            self.pool.put_back(self)
            job.failed(error)

    def kill(self, job: Job) -> bool:
        """Kill the process that works on `job`; False where it is a thread, which nobody can kill."""
        return False

    def warm(self, spec: Spec) -> None:
        """Import a segment's callables and build its state ahead of the first item."""
        self.jobs.put(lambda: self.prepare(spec))

    def ready(self, spec: Spec) -> BaseException | None:
        """Get ready for `spec` and wait until that is done; return what went wrong. Called on the lane's thread."""
        raise NotImplementedError

    def forget(self, spec: Spec) -> Future[None]:
        """Close and drop the state of a segment whose run has ended; the result says when that has been done."""
        dropped: Future[None] = Future()

        def drop() -> None:
            try:
                self.drop(spec)
                dropped.set_result(None)
            except BaseException as error:
                dropped.set_exception(error)

        self.jobs.put(drop)
        return dropped

    def stop(self) -> None:
        """End the lane once its present job is done."""
        self.jobs.put(None)

    def execute(self, job: Job) -> None:
        """Run a chunk; called on the lane's thread."""
        raise NotImplementedError

    def prepare(self, spec: Spec) -> None:
        """Get ready for `spec`; a failure is kept for the first chunk to tell."""
        raise NotImplementedError

    def knows(self, spec: Spec) -> bool:
        """Tell whether the lane may have state of `spec`."""
        raise NotImplementedError

    def drop(self, spec: Spec) -> None:
        """Forget `spec`; raises what closing its state raised."""
        raise NotImplementedError

    def close(self) -> None:
        """Release what the lane holds; called on its thread as it ends."""

    def _serve(self) -> None:
        while True:
            try:
                job = self.jobs.get(timeout=self.pool.idle)
            except queue.Empty:
                if self.pool.retire(self):
                    break
                continue
            if job is None:
                break
            try:
                job()
            except BaseException as error:
                # Getting ready went wrong. The lane lives on: its next chunk meets the problem again and tells it.
                sys.excepthook(type(error), error, error.__traceback__)
            del job
        self.close()


class ThreadLane(Lane):
    """A lane that runs chunks itself."""

    def __init__(self, pool: Pool, name: str) -> None:
        self.bound: dict[int, tuple[Any, Any]] = {}
        super().__init__(pool, name)

    def prepare(self, spec: Spec) -> None:
        """Build the state of `spec` in this thread."""
        if spec.number not in self.bound:
            try:
                self.bound[spec.number] = spec.context.copy().run(bind, spec.steps)
            except BaseException as error:
                self.bound[spec.number] = ([], error)

    def knows(self, spec: Spec) -> bool:
        """Tell whether the state of `spec` was built here."""
        return spec.number in self.bound or not self.jobs.empty()

    def drop(self, spec: Spec) -> None:
        """Close the state of `spec`."""
        _, closing = self.bound.pop(spec.number, (None, ()))
        if not isinstance(closing, BaseException):
            close_all(closing)

    def execute(self, job: Job) -> None:
        """Run a chunk, each call in a copy of the run's context."""
        spec = job.spec
        self.prepare(spec)
        steps, problem = self.bound[spec.number]
        if isinstance(problem, BaseException):
            self.pool.put_back(self)
            job.failed(problem)
            return

        def send(part: Part) -> None:
            if part.last:
                job.outbox = None
                self.pool.put_back(self)
            job.part(part)

        job.outbox = outbox = Outbox(len(steps), send, threading.Lock(), spec.flat)
        base = spec.context.copy()
        base.run(present.set, Leftovers())
        job.began()
        run_chunk(
            steps,
            job.values,
            outbox,
            job.wanted,
            base,
            job.skip,
            job.hold,
            spec.part_bytes,
        )
        if job.outbox is not None:  # Ended early: nobody wants the rest.
            job.outbox = None
            self.pool.put_back(self)
            job.left()

    def close(self) -> None:
        """Close every state that is still there."""
        for number in list(self.bound):
            _, closing = self.bound.pop(number)
            if not isinstance(closing, BaseException):
                with contextlib.suppress(Exception):
                    close_all(closing)


class BlockingLane(ThreadLane):
    """A lane for synchronous I/O: it holds no slot, so a run started in it may use the shared pool."""

    kind = "blocking"


class Pool:
    """Slots and lanes.

    Args:
        count: slots; by default what `cores` says.
        idle: seconds after which an idle lane ends.
    """

    def __init__(self, count: int | None = None, idle: float = IDLE) -> None:
        self.slots = Slots(cores() if count is None else count)
        self.idle = idle
        self._lock = threading.Lock()
        self._idle: dict[str, list[Lane]] = {"threads": [], "processes": [], "blocking": []}
        self._all: set[Lane] = set()
        self._count = itertools.count(1)
        self._closed = False

    def lane(self, kind: str) -> Lane:
        """Take an idle lane of `kind`, the most recently used first, or start one."""
        with self._lock:
            if self._closed:
                raise PoolClosed(
                    "the pool has been shut down; tn.shutdown() ends the workers of every run"
                )
            idle = self._idle[kind]
            if idle:
                return idle.pop()
            lane = self._start(kind)
            self._all.add(lane)
            return lane

    def idle_lanes(self, kind: str) -> int:
        """Return how many lanes of `kind` are there and have nothing to do."""
        return len(self._idle[kind])

    def prestart(self, kind: str, count: int, specs: Sequence[Spec]) -> None:
        """See to it that `count` idle lanes of `kind` exist and get ready for `specs`."""
        with self._lock:
            if self._closed:
                return
            # With another run at work there may be enough of them already, though they are not idle.
            most = max(0, self.slots.count - sum(lane.kind == kind for lane in self._all))
            for _ in range(min(most, count - len(self._idle[kind]))):
                lane = self._start(kind)
                self._all.add(lane)
                self._idle[kind].append(lane)
            lanes = self._idle[kind][-count:]
        for lane in lanes:
            for spec in specs:
                lane.warm(spec)

    def _start(self, kind: str) -> Lane:
        name = f"tournant-{kind}-{next(self._count)}"
        if kind == "processes":
            from tournant.pool.processes import ProcessLane

            return ProcessLane(self, name)
        return (ThreadLane if kind == "threads" else BlockingLane)(self, name)

    def put_back(self, lane: Lane) -> None:
        """Make a lane that has finished its job available again."""
        with self._lock:
            if not self._closed:
                self._idle[lane.kind].append(lane)

    def retire(self, lane: Lane) -> bool:
        """Take an idle lane out of the pool; False if it has just been given a job."""
        with self._lock:
            if lane not in self._idle[lane.kind] or not lane.jobs.empty():
                return False
            self._idle[lane.kind].remove(lane)
            self._all.discard(lane)
            return True

    def forget(self, specs: Sequence[Spec]) -> list[tuple[Spec, Future[None]]]:
        """Have every lane drop segments whose run has ended; return what to wait for where there is state to close."""
        return [
            (spec, dropped)
            for lane in self.lanes()
            for spec in specs
            if lane.knows(spec)
            for dropped in [lane.forget(spec)]
            if spec.closing
        ]

    def lanes(self) -> Iterator[Lane]:
        """Iterate over all lanes, idle and busy."""
        with self._lock:
            return iter(list(self._all))

    def close(self, timeout: float = 5.0) -> None:
        """End all lanes: idle ones now, busy ones after their present chunk. Waits up to `timeout` seconds."""
        with self._lock:
            self._closed = True
            lanes = list(self._all)
            self._all.clear()
            for idle in self._idle.values():
                idle.clear()
        for lane in lanes:
            lane.stop()
        due = monotonic() + timeout
        for lane in lanes:
            if lane.thread is not threading.current_thread():
                lane.thread.join(max(0.0, due - monotonic()))


_shared: Pool | None = None
_shared_lock = threading.Lock()


def shared() -> Pool:
    """Return the pool of this process, made on first use."""
    global _shared
    with _shared_lock:
        if _shared is None:
            _shared = Pool()
        return _shared


def holds_slot() -> bool:
    """Tell whether the calling code runs on a pool worker, so that a run it starts must not wait for the shared slots."""
    worker = sys.modules.get("tournant.pool.worker")
    return _on_slot.get() or bool(worker is not None and worker.inside)


def shutdown(timeout: float = 5.0) -> None:
    """End the shared pool's workers now instead of after their idle time. The next run starts new ones.

    Args:
        timeout: seconds to wait for workers that are in the middle of a chunk.
    """
    global _shared
    with _shared_lock:
        pool, _shared = _shared, None
    if pool is not None:
        pool.close(timeout)


def _after_fork() -> None:
    global _shared, _shared_lock
    # The child of a fork has none of our threads; their pipes are not its business.
    _shared = None
    _shared_lock = threading.Lock()


atexit.register(shutdown, 1.0)
os.register_at_fork(after_in_child=_after_fork)
