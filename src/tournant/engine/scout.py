"""Finds out within some milliseconds whether the threads of an ``on="auto"`` stage get in each other's way.

The `tournant.guards.gil.GilProbe` judges; here it is shown many wake-ups in a row, where the process's watchdog would take a third of a
second: a run may be over by then. The looks become rarer as long as there is nothing to tell.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Collection
from time import perf_counter

from tournant.guards.clocks import switches
from tournant.guards.gil import ONE_CORE, OWN, GilProbe, Scaling

#: Seconds of work side by side that are enough for a first verdict.
QUICK = 0.01
#: Seconds between two looks: at first, and at most.
_FIRST, _LAST = 0.001, 0.05
#: The same where the verdict is there and nothing can be done yet.
_AGAIN = 0.005
#: The interval grows by this from look to look.
_GROWTH = 1.1


def _seems_bound(scaling: Scaling) -> bool:
    """Tell whether the first looks are clear enough to get processes ready; when they are, the probe has the last word."""
    return (
        scaling.verdict == "unknown"
        and scaling.seconds >= QUICK
        and scaling.waited >= 0.7
        and scaling.workers >= 1.8
        and 0.3 <= scaling.cores <= ONE_CORE
        and OWN * scaling.process_cores <= scaling.cores
        and scaling.process_cores <= ONE_CORE
    )


class Tick:
    """A wake-up of the scout."""

    __slots__ = ("late", "lock_waited", "now")

    def __init__(self, now: float, late: float, lock_waited: bool) -> None:
        self.now = now
        self.late = late
        self.lock_waited = lock_waited


class Scout:
    """A thread that watches some others until it has been told to stop.

    Args:
        name: of the stage.
        threads: returns the native ids of the threads that are at work now.
        cores: cores that they may use.
        prepare: called first, on the scout's thread.
        found: called on the scout's thread when they seem to wait for the interpreter lock; returns whether to look on.
    """

    def __init__(
        self,
        name: str,
        threads: Callable[[], Collection[int]],
        cores: int,
        prepare: Callable[[], None],
        found: Callable[[Scaling], bool],
    ) -> None:
        self._name = name
        self._prepare = prepare
        self._found = found
        self._probe = GilProbe(enough=QUICK, cores=cores)
        self._probe.add(name, threads)
        # Held until `stop`: waiting for it with a timeout is a sleep that can be cut short.
        self._stop = threading.Lock()
        self._stop.acquire()
        self.stopped = False
        self._thread = threading.Thread(target=self._look, name="tournant-scout", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End it. Twice is once."""
        if not self.stopped:
            self.stopped = True
            self._stop.release()

    def scaling(self) -> Scaling:
        """Return what is known so far."""
        scaling = self._probe.scaling(self._name)
        assert scaling is not None
        return scaling

    def _look(self) -> None:
        self._prepare()
        delay = _FIRST
        interval = sys.getswitchinterval()
        while True:
            given, before = switches(), perf_counter()
            if self._stop.acquire(timeout=delay):
                return
            now = perf_counter()
            after = switches()
            late = max(0.0, now - before - delay)
            # Between two chunks a thread gives the lock up, so nobody waits for it as long as a switch interval.
            waited = late > 0.2 * interval
            if waited and given is not None and after is not None:
                # Once for the sleep, and once more for the lock; who merely gets no core is as late and has switched only once.
                waited = after - given >= 2
            self._probe.look(Tick(now, late, waited))
            scaling = self.scaling()
            if scaling.verdict == "gil-bound" or _seems_bound(scaling):
                if not self._found(scaling):
                    return
                delay = _AGAIN
            else:
                delay = min(_LAST, delay * _GROWTH)
