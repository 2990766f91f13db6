"""What came of cooking one work in one way: the stopwatch, who did what, and the recording."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

from tournant.kitchen.plates import Plate, Step
from tournant.kitchen.ways import WORKS
from tournant.observe.recording import Counter, InputSpan, Lane, Recording, Slice, Stage


@dataclass(frozen=True)
class Cooked:
    """One work, done in one way.

    Attributes:
        work: name of the work, a key of `WORKS`.
        way: name of the way, a key of `WAYS`.
        seconds: from the first order in to the last plate out.
        cpu: seconds of computing meanwhile, of all threads and processes of the cooks together.
        cores: cores that the system lets us use.
        plates: in the order of the orders.
        pid: the process that the stopwatch ran in.
        began: where the stopwatch began on the machine's monotonic clock.
        alone: seconds of the same work done synchronously; ``None`` where that was not measured.
        disturbed: whether this way or the synchronous one got less of the cores than it could have used, so that the two are not comparable.
        hiring: seconds that it took to start the worker processes, which are not in `seconds`; 0 where they were there, or not needed.
        others: cores that other programs kept busy meanwhile; 0 where the system does not say.
        crowded: whether other programs took cores that the cooks could have used.
        gil: whether this Python has a GIL.
        answers: seconds that the servers took for their answers, all of them together.
        workers: processes that a pool starts: as many as `cores`, or ``TOURNANT_CORES``; 0 stands for `cores`.
    """

    work: str
    way: str
    seconds: float
    cpu: float
    cores: int
    plates: tuple[Plate, ...]
    pid: int
    began: float
    alone: float | None = None
    disturbed: bool = False
    hiring: float = 0.0
    others: float = 0.0
    crowded: bool = False
    gil: bool = True
    answers: float = 0.0
    workers: int = 0

    @property
    def steps(self) -> tuple[Step, ...]:
        """What was done, in the order in which it began."""
        return tuple(
            sorted((step for plate in self.plates for step in plate.steps), key=lambda s: s.began)
        )

    @property
    def speedup(self) -> float | None:
        """How many times as fast as one dish after the other; ``None`` where that was not measured."""
        return None if self.alone is None else self.alone / self.seconds

    @property
    def busy_cores(self) -> float:
        """Parallelism: how many cores worked at once, on average."""
        return self.cpu / self.seconds

    @property
    def at_once(self) -> int:
        """Concurrency: how many steps were under way at once, at most."""
        return max((depth for _, depth in _depths(self.steps)), default=0)

    @property
    def thinking(self) -> tuple[Step, ...]:
        """The steps that compute."""
        names = WORKS[self.work].thinks
        return tuple(step for step in self.steps if step.name in names)

    @property
    def waiting_share(self) -> float:
        """Share of the time, 0 to 1, for which somebody was at a step that waits."""
        names = WORKS[self.work].thinks
        return _length([step for step in self.steps if step.name not in names]) / self.seconds

    @property
    def thinking_cores(self) -> float:
        """How many cores worked, on average, while somebody was at a step that computes; 0 where nobody was."""
        length = _length(list(self.thinking))
        return sum(step.cpu for step in self.thinking) / length if length else 0.0

    @property
    def starved(self) -> bool:
        """Whether a step that had a thread and the GIL to itself, and no more to do than to compute, stood still for a quarter of its time."""
        steps = list(self.thinking)
        if self.way == "hybrid":
            steps = [step for step in steps if step.pid != self.pid]
        if self.way == "threads" or (self.workers or self.cores) > self.cores:
            return False
        return sum(s.cpu for s in steps) < 0.75 * sum(s.ended - s.began for s in steps)

    @property
    def processes(self) -> tuple[int, ...]:
        """The processes that did something."""
        return tuple(dict.fromkeys(step.pid for step in self.steps))

    @property
    def threads(self) -> tuple[tuple[int, int], ...]:
        """The threads that did something: process and number."""
        return tuple(dict.fromkeys((step.pid, step.thread_id) for step in self.steps))

    @property
    def tasks(self) -> tuple[str, ...]:
        """The asyncio tasks that did something, by their names."""
        return tuple(dict.fromkeys(step.task for step in self.steps if step.task))

    @property
    def seen_cores(self) -> tuple[int, ...]:
        """The cores on which steps began or ended; empty where the system does not say."""
        return tuple(sorted({core for step in self.steps for core in step.cores}))

    def recording(self) -> Recording:
        """Return what ran where and when, for the chart, the timeline and the trace."""
        from tournant.kitchen.reasons import cooks, why

        work = WORKS[self.work]
        names = [task.__name__ for task in work.plain]
        lanes = self._lanes()
        numbers = {key: n for n, key in enumerate(lanes)}
        zero = self.began
        slices = [
            Slice(
                numbers[self._place(step)], names.index(step.name), step.began - zero, step.ended - zero, (step.order,)
            )
            for step in self.steps
        ]  # fmt: skip
        inputs = {
            plate.order: InputSpan(
                f"order {plate.order}", plate.steps[0].began - zero, plate.steps[-1].ended - zero
            )
            for plate in self.plates
        }
        depths = _without_gaps(
            [(at - zero, float(depth)) for at, depth in _depths(self.steps)], self.seconds / 500
        )
        return Recording(
            title=f"{self.work}, {self.way}",
            began=time.time() - (time.monotonic() - zero),
            duration=self.seconds,
            cores=self.cores,
            stages=tuple(Stage(name, on) for name, on in zip(names, self._placed(), strict=True)),
            lanes=tuple(lanes.values()),
            slices=tuple(slices),
            inputs=inputs,
            counters=(Counter("steps at once", "", ((0.0, 0.0), *depths)),),
            summary=f"{_sentence(f'{work.title}; {cooks(self)}')} {self.seconds:.2f} s. {why(self)}",
        )

    def _placed(self) -> tuple[str, ...]:
        work = WORKS[self.work]
        everywhere = {
            "synchronous": "in the main thread",
            "concurrent": "loop",
            "threads": "threads",
        }
        if self.way == "hybrid":
            return work.placed
        return (everywhere.get(self.way, "processes"),) * len(work.plain)

    def _place(self, step: Step) -> tuple[Any, ...]:
        """Who did a step, as a key of a lane."""
        if self.way == "concurrent":
            return ("task", step.task)
        if step.task:
            # The tasks of a pipeline's loop stage are as good as each other: one lane, in which its steps overlap.
            return ("loop", step.name)
        if self.way == "processes" or step.pid != self.pid:
            return ("process", step.pid)
        return ("thread", step.pid, step.thread_id)

    def _lanes(self) -> dict[tuple[Any, ...], Lane]:
        found: dict[tuple[Any, ...], Lane] = {}
        first: dict[tuple[Any, ...], int] = {}
        names = [task.__name__ for task in WORKS[self.work].plain]
        counts: dict[str, int] = {}
        for plate in self.plates:
            for step in plate.steps:
                key = self._place(step)
                if key in found:
                    continue
                kind = key[0]
                counts[kind] = counts.get(kind, 0) + 1
                if kind == "task":
                    name = f"task {step.task}"
                elif kind == "loop":
                    name = f"loop: {step.name}"
                elif self.way == "synchronous":
                    name = "main thread"
                else:
                    name = f"{kind} {counts[kind]}"
                found[key] = Lane(kind, name, step.pid)
                first[key] = names.index(step.name)
        return {key: found[key] for key in sorted(found, key=first.__getitem__)}

    def as_dict(self) -> dict[str, Any]:
        """Return plain data that ``json.dumps`` takes; times are seconds since the stopwatch began."""
        from tournant.kitchen.reasons import why

        return {
            "work": self.work,
            "way": self.way,
            "seconds": self.seconds,
            "speedup": self.speedup,
            "at_once": self.at_once,
            "busy_cores": self.busy_cores,
            "cpu": self.cpu,
            "other_programs": self.others,
            "crowded": self.crowded,
            "disturbed": self.disturbed,
            "hiring": self.hiring,
            "processes": len(self.processes),
            "threads": len(self.threads),
            "tasks": len(self.tasks),
            "cores": list(self.seen_cores),
            "why": why(self),
            "steps": [
                {
                    **step._asdict(),
                    "began": step.began - self.began,
                    "ended": step.ended - self.began,
                    "cores": list(step.cores),
                }
                for step in self.steps
            ],
        }


def _depths(steps: tuple[Step, ...]) -> list[tuple[float, int]]:
    """Return how many steps were under way from each moment on at which that changed."""
    changes = sorted([(s.began, 1) for s in steps] + [(s.ended, -1) for s in steps])
    depth = 0
    found = []
    for at, change in changes:
        depth += change
        found.append((at, depth))
    return found


def _without_gaps(
    depths: list[tuple[float, float]], shortest: float
) -> tuple[tuple[float, float], ...]:
    """Leave out the moments between one step and the next, which nobody could see, but which would be drawn as lines.

    Args:
        depths: when it changed, and to how many.
        shortest: seconds for which a lower depth must have lasted.
    """
    kept: list[tuple[float, float]] = []
    for n, (at, depth) in enumerate(depths):
        lower = bool(kept) and depth < kept[-1][1]
        following = depths[n + 1] if n + 1 < len(depths) else (math.inf, 0.0)
        if lower and following[1] > depth and following[0] - at < shortest:
            continue
        if not kept or depth != kept[-1][1]:
            kept.append((at, depth))
    return tuple(kept)


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _length(steps: list[Step]) -> float:
    """Return for how many seconds at least one of the steps was under way."""
    length, until = 0.0, float("-inf")
    for step in sorted(steps, key=lambda step: step.began):
        length += max(0.0, step.ended - max(step.began, until))
        until = max(until, step.ended)
    return length
