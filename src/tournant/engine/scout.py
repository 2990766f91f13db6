"""Finds out within some milliseconds whether the threads of an ``on="auto"`` stage would get in each other's way.

It goes by the same two facts as `tournant.guards.gil.GilProbe` (the CPU time that the threads use, and wake-ups that had to wait for the
interpreter lock), which takes a third of a second to be sure and reads files to be fair to a busy machine. A run may be over by then, and each
file that is read means to wait for the lock again, several times. So this one looks often, does nothing that lets go of the lock, and
needs no second thread to see that the first one holds it. A mistake costs little: a stage that moves without need works on in processes.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Collection
from time import perf_counter

from tournant.guards.clocks import cpu_seconds, switches
from tournant.guards.gil import ONE_CORE, OWN, Scaling

#: Seconds of work side by side that are enough for a verdict.
QUICK = 0.004
#: Share of that time whose wake-ups must have waited for the lock.
_MOSTLY = 0.7
#: Switch intervals by which a wake-up that had to wait is late.
_LATE = 0.15
#: Cores below which threads wait for something else than the lock.
_LITTLE = 0.5
#: Seconds of work after which a thread that lets the lock go is known to do so.
_FREE = 0.002
#: Seconds after which evidence counts half, so that a stage that changes is judged anew.
_MEMORY = 0.25
#: Seconds between two looks: at first, and at most; and where the verdict is there and nothing can be done yet.
_FIRST, _LAST, _AGAIN = 0.001, 0.05, 0.005
#: The interval grows by this from look to look.
_GROWTH = 1.1


class Evidence:
    """What was seen of some threads that share their work.

    Args:
        name: of the stage.
        threads: returns the native ids of the threads, none while they have no work.
    """

    def __init__(self, name: str, threads: Callable[[], Collection[int]]) -> None:
        self._name = name
        self._threads = threads
        self._known: dict[int, float] = {}
        self._at = self._process = 0.0
        self._cpu = self._used = self._seconds = self._workers = self._waited = 0.0

    def look(self, now: float, waited: bool) -> None:
        """Take one look; `waited`: the wake-up had to wait for the lock."""
        passed, self._at = now - self._at, now
        process = time.process_time()
        used, self._process = process - self._process, process
        before = self._known
        known = {thread: cpu_seconds(thread) for thread in list(self._threads())}
        self._known = {thread: cpu for thread, cpu in known.items() if cpu is not None}
        spent = [cpu - before[thread] for thread, cpu in self._known.items() if thread in before]
        if not spent:
            return
        if self._seconds > _MEMORY:
            self._cpu, self._used, self._seconds = self._cpu / 2, self._used / 2, self._seconds / 2
            self._workers, self._waited = self._workers / 2, self._waited / 2
        self._cpu += sum(spent)
        self._used += used
        self._seconds += passed
        self._workers += len(spent) * passed
        self._waited += waited * passed

    def start(self, now: float) -> None:
        """Count from now on."""
        self._at, self._process = now, time.process_time()
        self._known = {t: cpu for t in list(self._known) if (cpu := cpu_seconds(t)) is not None}

    def join(self, thread: int) -> None:
        """Count a thread that begins now."""
        cpu = cpu_seconds(thread)
        if cpu is not None:
            self._known.setdefault(thread, cpu)

    def scaling(self) -> Scaling:
        """Return what is known."""
        seconds = self._seconds or 1e-9
        cores, process = self._cpu / seconds, self._used / seconds
        waited = self._waited / seconds
        bound = (
            self._seconds >= QUICK
            and waited >= _MOSTLY
            and _LITTLE <= cores <= ONE_CORE
            and OWN * process <= cores
            and process <= ONE_CORE
        )
        verdict = "gil-bound" if bound else "unknown"
        return Scaling(
            self._name, verdict, self._workers / seconds, cores, process, waited, self._seconds
        )


class Scout:
    """A thread that watches some others until it has been told to stop.

    Args:
        name: of the stage.
        threads: as for `Evidence`.
        prepare: called first, on the scout's thread.
        found: called on the scout's thread when the lock is held while they work; returns whether to look on.
        free: called there once when it is not.
    """

    def __init__(
        self,
        name: str,
        threads: Callable[[], Collection[int]],
        prepare: Callable[[], None],
        found: Callable[[Scaling], bool],
        free: Callable[[], None],
    ) -> None:
        self._prepare = prepare
        self._free = free
        self._found = found
        self._evidence = Evidence(name, threads)
        # Held until `stop`: waiting for it with a timeout is a sleep that can be cut short.
        self._stop = threading.Lock()
        self._stop.acquire()
        self._begun = False
        self.stopped = False
        self._thread = threading.Thread(target=self._look, name="tournant-scout", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def begin(self) -> None:
        """Count from now on; before it nothing is counted. Called once, from another thread."""
        if not self._begun:
            self._evidence.start(perf_counter())
            self._begun = True

    def join(self, thread: int) -> None:
        """Watch one more thread, from now on; by its native id."""
        self._evidence.join(thread)

    def stop(self) -> None:
        """End it. Twice is once."""
        if not self.stopped:
            self.stopped = True
            self._stop.release()

    def _look(self) -> None:
        self._prepare()
        delay, told = _FIRST, False
        interval = sys.getswitchinterval()
        while True:
            given, before = switches(), perf_counter()
            if self._stop.acquire(timeout=delay):
                return
            now = perf_counter()
            after = switches()
            if not self._begun:
                continue
            # Between two chunks a thread gives the lock up, so nobody waits for it as long as a switch interval.
            late = now - before - delay
            waited = late > _LATE * interval
            if waited and given is not None and after is not None:
                # Once for the sleep, and once more for the lock; who merely gets no core is as late and has switched only once.
                waited = after - given >= 2
            self._evidence.look(now, waited)
            scaling = self._evidence.scaling()
            if scaling.verdict != "gil-bound":
                delay = min(_LAST, delay * _GROWTH)
                if not told and scaling.seconds >= _FREE and scaling.waited < _MOSTLY:
                    told = True
                    self._free()
            elif self._found(scaling):
                delay = _AGAIN if scaling.seconds > 2 * QUICK else _FIRST
            else:
                return
