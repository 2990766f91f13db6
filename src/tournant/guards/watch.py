"""`watch`: the guards around any asyncio program."""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
import threading
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import Any

from tournant.guards import crowd, hooks, lost, patrol, places
from tournant.guards.clocks import memory_bytes
from tournant.guards.finding import Finding
from tournant.guards.loopwatch import THRESHOLD, Loopwatch

#: Tasks at once, and bytes by which memory has grown meanwhile, from which on they are too many.
MANY_TASKS, MUCH_MEMORY = 5_000, 64 << 20
#: Looks of the watchdog between two counts of the tasks.
_COUNT_EVERY = 5
_log = logging.getLogger("tournant.guards")


class Watch:
    """What `watch` yields.

    Attributes:
        findings: the mistakes found so far, one for each place.
        notices: what is worth knowing and may be right as it is (very many tasks at once), and what held a loop up and is nobody's
            mistake (garbage collections, a stalled machine).
    """

    def __init__(self, threshold: float, report: Callable[[Finding], None] | None) -> None:
        self._threshold = threshold
        self._report = report
        self._lock = threading.RLock()
        self._lost: list[Finding] = []
        self._blocks: list[Finding] = []
        #: Loops that run: who looks at them, what tracks the coroutines, and their thread (native id).
        self._loops: dict[int, tuple[Loopwatch, hooks.Origins, int]] = {}
        self._complaints: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, hooks.Complaints] = (
            weakref.WeakKeyDictionary()
        )
        self._notices: list[Finding] = []
        self._crowd = crowd.Crowd(
            self._add, lambda: [loop[2] for loop in list(self._loops.values())]
        )
        self._looks = 0
        self._memory = 0
        self._crowded = False
        self._entered: asyncio.AbstractEventLoop | None = None
        self._origins: hooks.Origins | None = None
        self.saw_loop = False

    @property
    def findings(self) -> list[Finding]:
        """The mistakes found so far."""
        with self._lock:
            running = [
                finding for looking, *_ in self._loops.values() for finding in looking.findings
            ]
            return merged([*self._blocks, *running, *self._lost])

    @property
    def notices(self) -> list[Finding]:
        """What is worth knowing."""
        with self._lock:
            running = [notice for looking, *_ in self._loops.values() for notice in looking.notices]
            return [*self._notices, *running]

    # The block.

    def __enter__(self) -> Watch:
        """Begin."""
        places.declare(sys._getframe(1).f_code.co_filename)
        self._memory = memory_bytes()
        hooks.add(self)
        try:
            self._entered = asyncio.get_running_loop()
        except RuntimeError:
            self._origins = hooks.Origins()
        else:
            self.loop_begins(self._entered)
        patrol.join(self)
        patrol.join(self._crowd)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End, and bring to light what has been thrown away."""
        if self.saw_loop:
            # What lies in a cycle says that it was lost only when it is collected. A loop that runs is not to be held up by it.
            gc.collect(1 if self._entered is not None else 2)
        patrol.leave(self)
        patrol.leave(self._crowd)
        if self._entered is not None:
            self.loop_ends(self._entered)
        if self._origins is not None:
            self._origins.stop()
        hooks.discard(self)
        for complaints in list(self._complaints.values()):
            complaints.stop()

    # For the hooks.

    def loop_begins(self, loop: asyncio.AbstractEventLoop) -> None:
        """Watch a loop."""
        self.saw_loop = True
        with self._lock:
            if id(loop) in self._loops:
                return
            if loop not in self._complaints:
                self._complaints[loop] = hooks.Complaints(loop, self.complained)
            looking = Loopwatch(self._threshold, on_finding=self._say)
            self._loops[id(loop)] = looking, hooks.Origins(), threading.get_native_id()
        looking.start(loop)

    def loop_ends(self, loop: asyncio.AbstractEventLoop) -> None:
        """Watch it no more, but go on listening to what it has to say about its tasks: they may be collected later."""
        with self._lock:
            known = self._loops.get(id(loop))
        if known is not None:
            looking, origins, _ = known
            looking.stop()
            origins.stop()
            with self._lock:
                del self._loops[id(loop)]
                self._blocks = merged([*self._blocks, *looking.findings])
                self._notices += looking.notices

    def complained(self, context: dict[str, Any]) -> None:
        """Take what a loop said to its exception handler."""
        finding = lost.complaint(context)
        if finding is not None:
            self._add(finding)

    def never_awaited(self, coroutine: Any) -> None:
        """Take a coroutine that was thrown away."""
        self._add(lost.never_awaited(coroutine))

    def left_behind(self, tasks: list[asyncio.Task[Any]]) -> None:
        """Take the tasks that `asyncio.run` is about to cancel."""
        for finding in lost.left_behind(tasks):
            self._add(finding)

    # For the patrol.

    def hurry(self) -> bool:
        """Not for this."""
        return False

    def look(self, tick: patrol.Tick) -> None:
        """Count the tasks now and then."""
        hooks.notice_uvloop()
        self._looks += 1
        if self._looks % _COUNT_EVERY or self._crowded:
            return
        if _task_count() < MANY_TASKS:
            return
        grown = memory_bytes() - self._memory
        if grown < MUCH_MEMORY:
            return
        tasks = _waiting_tasks()
        if len(tasks) >= MANY_TASKS:
            self._crowded = True
            finding = lost.crowd(tasks, grown)
            with self._lock:
                self._notices.append(finding)
            self._say(finding)

    def _add(self, finding: Finding) -> None:
        with self._lock:
            known = any(one.place == finding.place for one in self._lost)
            self._lost.append(finding)
        if not known:
            self._say(finding)

    def _say(self, finding: Finding) -> None:
        if self._report is None:
            return
        try:
            self._report(finding)
        except Exception:
            # Wherever this is, in the watchdog thread or in the middle of the program: nobody there could do anything about it.
            _log.exception("the report= of tn.watch failed on: %s", finding.text)


def watch(
    *, threshold: float = THRESHOLD, report: Callable[[Finding], None] | bool | None = True
) -> Watch:
    """Watch an asyncio program, or a part of it, for mistakes with concurrency: ``with tn.watch() as guards: asyncio.run(main())``.

    Inside a coroutine it watches the running loop until the block ends. Outside of one, every loop that runs in the block is watched, in
    whichever thread, uvloop's too.

    It finds: what blocks a loop, with the line and whether it computes or waits; a loop that waits for itself; threads that stand in
    each other's way behind the interpreter lock; tasks that are garbage-collected or cancelled before they have ended; exceptions that
    nobody looked at; coroutines that nobody awaited.

    Args:
        threshold: seconds from which on a loop counts as blocked. Default 0.1.
        report: what to do with each finding as it turns up: a callable, called on whichever thread finds it; ``True`` (default) to log it
            as a warning of the logger ``tournant.guards``, which writes to stderr unless the program has set up logging otherwise;
            ``None`` or ``False`` to do nothing.

    Returns:
        A `Watch`, to be entered; `Watch.findings` has what was found.
    """
    if report is True:
        report = _logged
    return Watch(threshold, report if callable(report) else None)


def _logged(finding: Finding) -> None:
    # Logging, not warnings: most findings come from the watchdog thread, where a filter that turns warnings into errors would
    # raise among the guards, and warnings are shown once per place of the caller, which here is always the same.
    _log.warning("%s", finding.text)


def merged(findings: list[Finding]) -> list[Finding]:
    """Return one finding for each place, with the longest duration and the counts added up."""
    from dataclasses import replace

    merged: dict[Any, Finding] = {}
    for finding in findings:
        known = merged.get((finding.place, finding.stage))
        if known is None:
            merged[finding.place, finding.stage] = finding
        else:
            longest = finding if finding.seconds > known.seconds else known
            merged[finding.place, finding.stage] = replace(
                longest, count=known.count + finding.count
            )
    return list(merged.values())


def _task_count() -> int:
    """Return about how many tasks there are, in all loops; cheap."""
    tasks = sys.modules.get("asyncio.tasks")
    for name in ("_scheduled_tasks", "_all_tasks"):
        known = getattr(tasks, name, None)
        if known is not None:
            return len(known)
    return MANY_TASKS


def _waiting_tasks() -> list[asyncio.Task[Any]]:
    tasks = sys.modules.get("asyncio.tasks")
    known = getattr(tasks, "_scheduled_tasks", getattr(tasks, "_all_tasks", None))
    # The set's own iterator is not meant for a thread that doesn't own it; its references are.
    references: set[weakref.ref[asyncio.Task[Any]]] = getattr(known, "data", set()).copy()
    return [task for ref in references if (task := ref()) is not None and not task.done()]
