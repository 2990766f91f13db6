"""Threads of any program that work side by side: the `GilProbe` without a pipeline, and the lines that such threads stand at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from types import FrameType

from tournant.guards import patrol, places
from tournant.guards.finding import Finding
from tournant.guards.gil import GilProbe, Scaling
from tournant.guards.places import Place

#: A thread belongs to those at work if it has used this share of what the busiest one has.
_SHARE = 0.3
#: Threads whose stacks are read at a look.
_READ = 8


class Lines:
    """The lines at which threads were seen."""

    def __init__(self) -> None:
        self._seen: Counter[Place] = Counter()

    def read(self, threads: Collection[int]) -> None:
        """Note where some threads (native ids) stand."""
        for native in list(threads)[:_READ]:
            frame: FrameType | None = places.culprit(places.frames_of_native(native))
            if frame is not None:
                self._seen[places.place_of(frame)] += 1

    def place(self) -> Place:
        """Return the line seen most in the function seen most; the user's own code comes first."""
        functions: Counter[tuple[bool, str, str]] = Counter()
        for place, count in self._seen.items():
            functions[places.owner(place.file) == "user", place.file, place.function] += count
        if not functions:
            return Place("", 0, "?")
        best = max(functions, key=lambda key: (key[0], functions[key]))
        mine = [p for p in self._seen if (p.file, p.function) == best[1:]]
        return max(mine, key=self._seen.__getitem__)


class Crowd:
    """Watches all threads of the process but those that run event loops.

    Args:
        found: called once with the finding, on the watchdog thread.
        but: returns the native ids of threads that don't count.
    """

    def __init__(
        self, found: Callable[[Finding], None], but: Callable[[], Collection[int]]
    ) -> None:
        self._found = found
        self._but = but
        self._active: set[int] = set()
        self._lines = Lines()
        self._probe = GilProbe()
        self._probe.add("threads", lambda: self._active)
        self._probe.prepare()
        self.told = False

    def hurry(self) -> bool:
        """Not for this."""
        return False

    def look(self, tick: patrol.Tick) -> None:
        """Take one look."""
        if self.told:
            return
        but = set(self._but())
        spent = {thread: cpu for thread, cpu in tick.spent.items() if thread not in but}
        _ = tick.cpu
        most = max(spent.values(), default=0.0)
        passed = tick.now - tick.last
        self._active = {
            t for t, cpu in spent.items() if cpu >= _SHARE * most and cpu > 0.02 * passed
        }
        self._probe.look(tick)
        if len(self._active) < 2 or not tick.lock_waited:
            return
        self._lines.read(self._active)
        scaling = self._probe.scaling("threads")
        if scaling is not None and scaling.verdict == "gil-bound":
            self.told = True
            place = self._lines.place()
            self._found(
                gil_bound(
                    scaling,
                    place,
                    None,
                    "Give the work to processes (concurrent.futures.ProcessPoolExecutor, or "
                    'tn.Pipeline(...).map(..., on="processes"))',
                )
            )


def gil_bound(scaling: Scaling, place: Place, stage: str | None, mend: str) -> Finding:
    """Say that threads stand in each other's way."""
    who = f"stage {stage!r} keeps" if stage is not None else "the program keeps"
    source = f": `{place.source}`" if place.source else ""
    return Finding(
        "gil-bound",
        f"{who} {scaling.workers:.1f} threads at work, but together they use {scaling.cores:.1f} cores, because only one at a "
        f"time can run Python code (the watchdog had to wait for the interpreter lock at {scaling.waited:.0%} of its looks); "
        f"mostly in {place}{source}. {mend}",
        place.file, place.line, stage, scaling.seconds, "gil-bound", place.function,
    )  # fmt: skip
