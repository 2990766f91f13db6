"""One block of an event loop: what was seen of it, and the verdict."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from tournant.guards import places
from tournant.guards.places import Place

if TYPE_CHECKING:
    from tournant.guards.patrol import Tick
    from tournant.guards.waits import Wait

#: The verdicts. The last four are nobody's mistake.
CPU, CALL, DEADLOCK, OTHER = "cpu", "blocking call", "waits on its own loop", "another thread"
COLLECTION, MACHINE, DEBUGGER = "garbage collection", "machine stalled", "debugger"
IMPORT = "import"
INNOCENT = frozenset((COLLECTION, MACHINE, DEBUGGER, IMPORT))
#: Share of a block that decides.
_MOST = 0.5


class Suspect:
    """Who held the loop: one step of a task, or one callback.

    Attributes:
        identity: the task or the callback's frame; ``None`` for the loop itself.
        task: the task, if it is one.
        since: when it was there first.
        until: when it was there last.
        cpu: CPU seconds that are its own for sure.
        places: how often each line was seen.
        stood: instructions at which it was seen: one only if it stood in one call all the time.
        stacks: the stack at the first sight of each line.
        stages: for each listener the stage that it named.
        debugged: a debugger was at work.
        importing: it loaded a module, which it does once.
        starting: it waited for a thread to begin, which takes a core and the interpreter lock and is no call of the user's.
    """

    __slots__ = (
        "cpu",
        "debugged",
        "identity",
        "importing",
        "places",
        "since",
        "stacks",
        "stages",
        "starting",
        "stood",
        "task",
        "until",
    )  # fmt: skip

    def __init__(self, identity: Any, task: Any, since: float) -> None:
        self.identity = identity
        self.task = task
        self.since = self.until = since
        self.places: Counter[Place] = Counter()
        self.stood: set[tuple[int, ...]] = set()
        self.stacks: dict[Place, str] = {}
        self.stages: list[tuple[Any, str | None]] = []
        self.cpu = 0.0
        self.debugged = self.importing = self.starting = False

    @property
    def seconds(self) -> float:
        """For how long."""
        return self.until - self.since

    def place(self) -> Place | None:
        """Return the line at which it was seen most."""
        return max(self.places, key=self.places.__getitem__) if self.places else None


class Block:
    """From a beat that should have come to the one that came.

    Attributes:
        due: when the beat was due; names the block.
        began: when the block began, as far as is known.
        queued_before: for how long the loop's thread had stood in the run queue by then.
        ended: when it ended, or now if it is `lasting`.
        lasting: it goes on.
        told: it has been told of while it lasted.
        examined: `wait` has been looked for.
        wait: what the loop's thread waits for, if that is known.
        cpu: CPU seconds of the loop's thread in it.
        queued: seconds for which that thread was ready to run and got no core.
        paused: seconds of garbage collection in it.
        stalled: seconds in which the watchdog stood still too, though it needed no more than to be woken.
        locked: seconds by which it was late because it didn't get the interpreter lock.
        worked: CPU seconds of other threads while the watchdog didn't get the lock.
        loop_worked: the same of the loop's thread.
        worker: where the busiest other thread stood, and its stack.
        worker_name: that thread's name.
        looks_at_worker: how often it was seen there.
        gripped: CPU seconds that the loop's thread used in one stretch in which nobody else got the lock: one call of native code.
        holding: where the code holds an asyncio lock.
        stage: the stage for the listener that is being told.
        suspects: who held the loop, one after the other.
        looks: looks taken.
    """

    def __init__(self, due: float, began: float, queued_before: float) -> None:
        self.due = due
        self.began = began
        self.queued_before = queued_before
        self.ended = began
        self.lasting = self.told = self.examined = False
        self.wait: Wait | None = None
        self.cpu = self.queued = self.paused = self.stalled = self.locked = 0.0
        self.worked = self.loop_worked = 0.0
        self._most = (False, 0.0)
        self.worker: tuple[Place, str] | None = None
        self.worker_name = ""
        self.looks_at_worker = 0
        self.gripped = 0.0
        self.holding: Place | None = None
        self.stage: str | None = None
        self.suspects: list[Suspect] = []
        self.looks = 0

    def seen(self, tick: Tick, native: int) -> None:
        """Count a wake-up of the watchdog that falls into the block.

        Args:
            tick: the wake-up.
            native: the native id of the loop's thread.
        """
        self.looks += 1
        late = min(tick.late, tick.now - self.began)
        if tick.lock_waited:
            self.locked += late
            spent = dict(tick.spent)
            own = spent.pop(native, 0.0)
            self.loop_worked += own
            # It can't have been at work for longer than this before somebody asked for the lock.
            unasked = tick.now - tick.last - tick.late + tick.blind
            self.gripped = max(self.gripped, own - unasked)
            if spent:
                self.worked += sum(spent.values())
                most = max(spent, key=spent.__getitem__)
                if frames := places.frames_of_native(most):
                    guilty = places.culprit(frames)
                    assert guilty is not None
                    place = places.place_of(guilty)
                    if self.worker is not None and place == self.worker[0]:
                        self.looks_at_worker += 1
                    # It may have come back from the user's code by the time that anybody could look.
                    seen = (places.owner(place.file) == "user", spent[most])
                    if seen > self._most:
                        if self.worker is None or place != self.worker[0]:
                            self.looks_at_worker = 1
                        self._most = seen
                        self.worker = place, places.written(frames)
                        self.worker_name = places.name_of_native(most)
        else:
            self.stalled += min(tick.stopped, late)

    def worked_since(self, cpu: float, blind: float) -> tuple[float, float]:
        """Return the CPU seconds of the loop's thread since the look before, and how many of them nobody may have seen.

        Many short pieces of work take CPU time, and are over before the watchdog comes if it gets no core.

        Args:
            cpu: CPU seconds of the loop's thread in the block so far.
            blind: seconds since the look before in which the watchdog had no core.
        """
        worked, self.cpu = max(0.0, cpu - self.cpu), cpu
        return worked, min(worked, blind)

    @property
    def seconds(self) -> float:
        """For how long it lasted."""
        return self.ended - self.began

    def suspect(self) -> Suspect | None:
        """Return who held the loop longest."""
        if self.lasting and self.suspects:
            self.suspects[-1].until = self.ended
        return max(self.suspects, key=lambda one: one.seconds, default=None)

    def verdict(self, threshold: float) -> tuple[str, float]:
        """Return what it was, and for how long that held up the loop; an empty verdict if it was nothing.

        Args:
            threshold: seconds below which it was nothing.
        """
        suspect = self.suspect()
        seconds = self.seconds
        if seconds < threshold:
            return "", 0.0
        if suspect is not None and self.wait is not None and self.wait.deadlock:
            return DEADLOCK, suspect.seconds
        if self.paused >= _MOST * seconds:
            return COLLECTION, self.paused
        # The loop's thread, too, may have waited for the interpreter lock, wherever it stood: in one long stretch, or again and again.
        # Who merely lost its core while it held the lock has not worked much.
        starting = suspect is not None and suspect.starting
        elsewhere = (
            self.worker is not None
            and self.worked >= threshold
            and self.worked >= 2 * (self.loop_worked + self.cpu)
        )
        if elsewhere and (self.locked >= max(_MOST * seconds, threshold) or starting):
            return OTHER, seconds
        machine = min(seconds, max(self.queued, self.stalled))
        if (machine >= _MOST * seconds and self.cpu < threshold) or starting:
            return MACHINE, machine
        if suspect is None or suspect.identity is None:
            if self.gripped >= threshold:
                return CPU, self.gripped
            return ("", 0.0) if seconds - machine >= threshold else (MACHINE, machine)
        if suspect.debugged:
            return DEBUGGER, seconds
        if suspect.importing:
            return IMPORT, seconds
        computes = self.cpu >= _MOST * (seconds - machine) or (
            # On a busy machine it also waits for whoever looks at it. A blocking call stands still, though.
            machine >= _MOST * seconds and self.cpu >= threshold and len(suspect.stood) > 1
        )
        held = suspect.seconds
        own = held - machine - self.paused
        if computes:
            # A thread that waits for a core has its work to do all the same.
            own = max(own, min(held, suspect.cpu - self.paused))
        if own < threshold:
            return "", 0.0
        if computes:
            return CPU, held
        if elsewhere and self.locked >= 0.25 * seconds and len(suspect.stood) > 1:
            return OTHER, held
        return CALL, held


def duration(seconds: float) -> str:
    """Write seconds as a person does."""
    return f"{seconds * 1000:.0f} ms" if seconds < 0.9995 else f"{seconds:.1f} s"
