"""Do threads that work side by side get more done than one? The probe tells, from outside, without touching their code.

Two facts together answer it. The CPU time that the threads use: little more than one core, although two or more of them are busy. And
the wake-ups of the watchdog: who holds the interpreter lock gives it up when somebody else has waited for a whole switch interval (5
ms), so the watchdog wakes up late and has given its core away again and again. zlib, hashing or a model's runtime release the
lock while they compute, a sleep needs no core: neither makes the watchdog wait. A machine that is busy with other programs makes it late
too, but that is waiting for a core and not for the lock.

A stage (or any group of threads) is registered with a callable that returns the native ids of the threads that work on it now::

    probe = GilProbe()
    probe.add("parse", lambda: [lane.thread.native_id for lane in busy_lanes])
    probe.start()                      # the process's one watchdog thread looks every 50 ms, every 20 ms while it is undecided
    ...
    probe.scaling("parse").verdict     # "unknown" for the first 0.3 s, then "gil-bound", "scales" or "waits"
    probe.stop()

Nothing is done on the threads that are watched.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Protocol

from tournant.guards.clocks import cpu_seconds, prepare, queued_seconds

#: Seconds with two or more busy threads before there is a verdict.
ENOUGH = 0.3
#: Share of the threads that want a core at a time, from which on it is cores that are scarce. Behind the lock most of them sleep.
ALL = 0.9
#: Looks that it takes to say that threads stand in each other's way.
LOOKS = 8
#: Cores that a process behind the lock can use: one, and what is done while nobody needs the lock.
ONE_CORE = 1.3
#: Cores that it uses at the least: with less it is the machine that has none to give, and nothing can be told.
MOST_OF_ONE = 0.6
#: Share of wake-ups that must have waited for the lock.
MOSTLY = 0.5
#: Share of the process's CPU time that must be the stage's own: others may hold the lock too.
OWN = 0.6
#: Share of wake-ups below which the lock holds nobody up.
SELDOM = 0.2
#: Cores below which threads wait for something else.
LITTLE = 0.25
#: Old evidence loses half of its weight after so many seconds, so a stage that changes is judged anew.
HALF_LIFE = 5.0


def gil_enabled() -> bool:
    """Tell whether this interpreter has its global lock (a free-threaded build may have none)."""
    return bool(getattr(sys, "_is_gil_enabled", lambda: True)())


@dataclass(frozen=True, slots=True)
class Scaling:
    """How a group of threads scales, as measured so far.

    Attributes:
        name: the stage or group.
        verdict: ``"gil-bound"`` (one thread at a time: use processes), ``"scales"`` (threads use more than one core, or
            would if the machine had one to give: none waits for the lock), ``"waits"`` (they hardly compute), ``"unknown"`` (not
            enough seen yet, or too mixed to tell).
        workers: threads at work, on average.
        cores: CPU seconds of these threads per second.
        process_cores: the same of the whole process.
        waited: share of the watchdog's wake-ups that waited for the interpreter lock for a switch interval or longer, 0 to 1.
        seconds: for how long two or more threads were seen at work (older evidence weighs less).
    """

    name: str
    verdict: str
    workers: float
    cores: float
    process_cores: float
    waited: float
    seconds: float


class Tick(Protocol):
    """A wake-up of the watchdog."""

    now: float
    late: float
    lock_waited: bool


class _Group:
    """The evidence on one stage."""

    __slots__ = (
        "both", "cpu", "inside", "known", "looks", "name", "process", "queued", "seconds", "threads", "waited", "wanted", "workers",
    )  # fmt: skip

    def __init__(self, name: str, threads: Callable[[], Collection[int]]) -> None:
        self.name = name
        self.threads = threads
        #: Who was inside at the last look, and the CPU seconds of everybody who ever was.
        self.inside: set[int] = set()
        self.known: dict[int, float] = {}
        #: For how long each had stood in the run queue at the last look, if the lock was waited for then.
        self.queued: dict[int, float] = {}
        self.cpu = self.process = self.seconds = self.workers = self.waited = self.looks = 0.0
        #: Seconds that they had or wanted a core, of so many seconds between two looks that both waited for the lock.
        self.wanted = self.both = 0.0

    def wants(self, at_work: set[int], spent: float, passed: float) -> None:
        """Note how many threads at a time had or wanted a core: behind the lock that is one, on a busy machine all of them."""
        before, self.queued = self.queued, {}
        for thread in at_work:
            queued = queued_seconds(thread)
            if queued is not None:
                self.queued[thread] = queued
        if before and before.keys() == self.queued.keys():
            self.wanted += spent + sum(self.queued.values()) - sum(before.values())
            self.both += passed

    def fade(self, factor: float) -> None:
        self.wanted *= factor
        self.both *= factor
        self.cpu *= factor
        self.process *= factor
        self.seconds *= factor
        self.workers *= factor
        self.waited *= factor
        self.looks *= factor


class GilProbe:
    """Watches groups of threads. All methods may be called from any thread.

    Args:
        enough: seconds with two or more busy threads before `scaling` has a verdict.
        cores: cores that the process may use; with one there is nothing to be told. Default: those of the machine's share.
    """

    def __init__(self, enough: float = ENOUGH, cores: int | None = None) -> None:
        self.enough = enough
        self._cores = cores
        self._groups: dict[str, _Group] = {}
        self._looked_at = 0.0
        self._process = 0.0
        self._started = False

    def add(self, name: str, threads: Callable[[], Collection[int]]) -> None:
        """Watch a group.

        Args:
            name: the stage's name.
            threads: called by the watchdog thread at each look; returns the native ids of the threads that are inside the stage's
                code at this moment. It must be quick and must not raise.
        """
        self._groups[name] = _Group(name, threads)

    def discard(self, name: str) -> None:
        """Watch a group no longer."""
        self._groups.pop(name, None)

    def start(self) -> None:
        """Have the watchdog thread look, until `stop`."""
        from tournant.guards import patrol

        if not self._started:
            self.prepare()
            self._started = True
            patrol.join(self)

    def prepare(self) -> None:
        """Read now what has to be read from files: behind the interpreter lock it would take a second."""
        prepare()
        self._available()

    def stop(self) -> None:
        """End it. What was measured stays."""
        from tournant.guards import patrol

        if self._started:
            self._started = False
            patrol.leave(self)

    def scaling(self, name: str) -> Scaling | None:
        """Return what is known of a group; ``None`` if it is not watched."""
        group = self._groups.get(name)
        return None if group is None else self._judge(group)

    def scalings(self) -> list[Scaling]:
        """Return what is known of each group."""
        return [self._judge(group) for group in list(self._groups.values())]

    # For the watchdog.

    def hurry(self) -> bool:
        """Tell whether there is a group at work that it would be good to know more about soon."""
        return any(
            len(group.inside) > 1 and (group.seconds < self.enough or group.looks < LOOKS)
            for group in list(self._groups.values())
        )

    def look(self, tick: Tick) -> None:
        """Take one look; called by the watchdog thread as it has woken up."""
        passed, self._looked_at = tick.now - self._looked_at, tick.now
        process = time.process_time()
        used, self._process = process - self._process, process
        for group in list(self._groups.values()):
            before, group.inside = group.inside, set(group.threads())
            spent, workers = 0.0, 0
            # Between two pieces of work a thread is outside for a moment, and waits for the lock there too.
            at_work = before | group.inside
            for thread in {*group.known, *at_work}:
                cpu = cpu_seconds(thread)
                if cpu is None:
                    group.known.pop(thread, None)
                    continue
                if thread in at_work and thread in group.known:
                    spent += cpu - group.known[thread]
                    workers += 1
                group.known[thread] = cpu
            if workers < 2:
                group.queued = {}
                continue
            group.fade(0.5 ** (passed / HALF_LIFE))
            group.cpu += spent
            group.process += used
            group.seconds += passed
            group.workers += workers * passed
            group.looks += 1
            group.waited += tick.lock_waited
            if tick.lock_waited:
                group.wants(at_work, spent, passed)
            else:
                group.queued = {}

    def _judge(self, group: _Group) -> Scaling:
        seconds = group.seconds or 1e-9
        cores, process = group.cpu / seconds, group.process / seconds
        workers, waited = group.workers / seconds, group.waited / (group.looks or 1)
        verdict = "unknown"
        if group.seconds >= self.enough and self._available() > 1:
            locked = (
                gil_enabled()
                and waited >= MOSTLY
                and group.looks >= LOOKS
                and MOST_OF_ONE <= process <= ONE_CORE
                and cores >= OWN * process
                and group.wanted <= ALL * workers * group.both
            )
            if locked:
                verdict = "gil-bound"
            elif cores > ONE_CORE or (cores >= LITTLE and waited < SELDOM and gil_enabled()):
                verdict = "scales"
            elif cores < LITTLE and waited < MOSTLY:
                verdict = "waits"
        return Scaling(group.name, verdict, workers, cores, process, waited, group.seconds)

    def _available(self) -> int:
        if self._cores is None:
            from tournant.pool.slots import cores

            self._cores = cores()
        return self._cores
