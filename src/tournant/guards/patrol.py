"""The process's one watchdog thread: it wakes up, notes how late it is itself and why, and lets everybody who joined take a look.

It starts when the first joins, and is gone a moment after the last has left, or before the interpreter ends.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
from time import perf_counter
from typing import Protocol

from tournant.guards.clocks import cpu_seconds, prepare, queued_seconds, switches

#: Seconds between two looks: while all is well, and while something is being looked into.
CALM, HURRY = 0.05, 0.02
_MOST_THREADS = 64
#: Waits for a core that the first one may have been as long as, of those that each attempt to get the lock brings.
_FIRST = 8
#: Seconds that the interpreter's end waits for the thread's.
_FAREWELL = 5.0
_log = logging.getLogger("tournant.guards")


class Tick:
    """One wake-up.

    Attributes:
        now: when, by `time.perf_counter`.
        last: when the previous one was.
        late: seconds by which it came later than it should have.
        stopped: the part of that in which it was neither waiting for a core nor for the interpreter lock: the machine, or the process,
            stood still.
        lock_waited: whether it waited for the interpreter lock for a switch interval or longer.
        blind: the part of `late` in which it waited for a core, or can't tell what for, before it asked for the lock: meanwhile the
            program may have done anything.
    """

    __slots__ = ("_before", "_cpu", "blind", "last", "late", "lock_waited", "now", "stopped")

    def __init__(
        self, now: float, last: float, late: float, lock_waited: bool, before: Tick | None
    ):
        self.now = now
        self.last = last
        self.late = late
        self.lock_waited = lock_waited
        self.stopped = 0.0
        self.blind = 0.0
        self._cpu: dict[int, float] | None = None
        if before is not None:
            before._before = None
        self._before: Tick | None = before

    @property
    def cpu(self) -> dict[int, float]:
        """CPU seconds so far of each thread that Python knows, by native id; empty where there are very many."""
        if self._cpu is None:
            threads = threading.enumerate() if threading.active_count() <= _MOST_THREADS else []
            me = threading.get_native_id()
            pairs = [(t.native_id, cpu_seconds(t.native_id)) for t in threads if t.native_id]
            self._cpu = {n: cpu for n, cpu in pairs if cpu is not None and n != me}
        return self._cpu

    @property
    def spent(self) -> dict[int, float]:
        """CPU seconds of each thread since the previous wake-up; empty if nobody asked for `cpu` then."""
        before = self._before._cpu if self._before is not None else None
        if before is None:
            return {}
        return {thread: cpu - before.get(thread, 0.0) for thread, cpu in self.cpu.items()}


class Member(Protocol):
    """Who takes looks. Both methods are called on the watchdog thread, and must be quick."""

    def look(self, tick: Tick) -> None:
        """Look."""

    def hurry(self) -> bool:
        """Tell whether the next look should come soon."""


class _Patrol:
    """One life of the thread: from the first member to the last."""

    def __init__(self) -> None:
        self.members: list[Member] = []
        self.ended = False
        # Held until the end: waiting for it with a timeout is a sleep that can be cut short.
        self._stop = threading.Lock()
        self._stop.acquire()
        self.thread = threading.Thread(target=self._run, name="tournant-watchdog", daemon=True)

    def end(self) -> None:
        """Have the thread end, and wait for it.

        A thread that wakes up when the interpreter is half gone is killed on the spot, and that takes the process down where no memory
        is left to do it.
        """
        self._stop.release()
        self.thread.join(_FAREWELL)

    def _run(self) -> None:
        last = perf_counter()
        me = threading.get_native_id()
        given, queued, prepared = switches(), 0.0, False
        tick = Tick(last, last, 0.0, False, None)
        _ = tick.cpu
        delay = CALM
        while True:
            told = self._stop.acquire(timeout=delay)
            now = perf_counter()
            if told or self._over():
                return
            after = switches()
            late = max(0.0, now - last - delay)
            interval = sys.getswitchinterval()
            if given is not None and after is not None:
                # Once for the sleep itself, once for the wait that asks for the lock, and again for each interval in which it
                # wasn't given. A process that was stopped has waited for long too, and switched a few times only.
                lock_waited = late > 0.5 * interval and after - given >= max(
                    3, 2 + 0.06 * late / interval
                )
            else:
                lock_waited = late > 0.8 * interval
            tick = Tick(now, last, late, lock_waited, tick)
            # Reading a file gives the lock away, and whoever held it would have gone on before anybody looked.
            asked = (
                after - given - 1 if lock_waited and given is not None and after is not None else 0
            )
            if not prepared:
                # Each time that it asked for the lock in vain took one interval.
                waited = late - asked * interval
            else:
                stood = queued_seconds(me) or 0.0
                waited, queued = stood - queued, stood
                if not lock_waited:
                    tick.stopped = max(0.0, late - waited)
                    waited = late - tick.stopped
            # Once it has asked for the lock, nobody gets any further without giving it away. So only the first of its waits for a core
            # counts; they are much alike.
            share = min(1.0, _FIRST / asked) if asked else 1.0
            tick.blind = share * min(late, max(0.0, waited))
            delay = CALM
            for member in list(self.members):
                try:
                    member.look(tick)
                    if member.hurry():
                        delay = HURRY
                except Exception:
                    # A guard that fails must not take the others along, nor the program.
                    _log.exception("a guard failed: %r. It has been switched off", member)
                    leave(member)
            if not prepared:
                # Not before the first look: a run may be over by then.
                prepare()
                prepared, queued = True, queued_seconds(me) or 0.0
            last = perf_counter()
            given = switches()

    def _over(self) -> bool:
        with _lock:
            if not self.members:
                self.ended = True
            return self.ended


_lock = threading.Lock()
_patrol: _Patrol | None = None
_registered = _over = False


def join(member: Member) -> None:
    """Have `member` look from now on."""
    global _patrol, _registered
    with _lock:
        if not _registered:
            _registered = True
            atexit.register(_at_exit)
        if _patrol is None or _patrol.ended:
            _patrol = _Patrol()
            _patrol.members.append(member)
            try:
                if _over:
                    raise RuntimeError("the interpreter ends")
                _patrol.thread.start()
            except RuntimeError:  # Nor if there is no room for a thread: then nobody watches, and the program goes on.
                _patrol.ended = True
        elif member not in _patrol.members:
            _patrol.members.append(member)


def leave(member: Member) -> None:
    """Let `member` look no more. It may be in the middle of its last look."""
    with _lock:
        if _patrol is None:
            return
        # With nobody left the thread ends as it wakes up; who joins before that saves the start of another.
        if member in _patrol.members:
            _patrol.members.remove(member)


def on_patrol() -> bool:
    """Tell whether the watchdog thread is there."""
    patrol = _patrol
    return patrol is not None and patrol.thread.is_alive()


def _at_exit() -> None:
    global _over
    with _lock:
        _over = True
        patrol = _patrol
        if patrol is None or patrol.ended:
            return
        patrol.ended = True
    patrol.end()


def _after_fork() -> None:
    global _lock, _patrol
    # The child of a fork has no watchdog thread, and nobody who watches.
    _lock = threading.Lock()
    _patrol = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
