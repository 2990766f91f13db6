"""What a recording adds up to: per stage and over time. What is said of it is in `verdict` and `advice`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from statistics import median

from tournant.observe.recording import FAILED, RETRIED, Recording, Slice
from tournant.observe.usage import Steps, together
from tournant.report import labelled

#: Into how many parts a run is cut to show its use over time.
PARTS = 20
#: A queue that holds something for this share of the run is work that waits.
_CROWDED = 0.7
#: Workers that use a core for less than this share of their calls' time wait, for not even a busy machine takes so much from those that
#: compute; and so little of a core do they use together.
_COMPUTING, _ONE_CORE = 0.15, 0.7
#: The name of the queue behind the last stage.
_RESULTS = "results"


@dataclass(frozen=True, slots=True)
class StageTime:
    """Where one stage's time went. Seconds are summed over its calls where nothing else is said.

    Attributes:
        name: the stage's name.
        on: where it ran.
        calls: its slices.
        items: items in them.
        failed: calls that failed.
        retried: calls that were tried again.
        busy: seconds in calls.
        waited_slot: seconds for which calls of a CPU stage were ready and waited for a core.
        waited_limit: seconds for which calls of another stage waited for its concurrency or its rate.
        wait_input: seconds of the run with no call and nothing in front of it; ``None`` without a counter of its queue.
        wait_room: seconds of the run with no call, though something was in front of it, and no room behind; ``None`` without the counters.
        at_once: the mean number of calls under way.
        peak: the most calls at once.
        p50: median seconds of a call.
    """

    name: str
    on: str
    calls: int
    items: int
    failed: int
    retried: int
    busy: float
    waited_slot: float
    waited_limit: float
    wait_input: float | None
    wait_room: float | None
    at_once: float
    peak: int
    p50: float

    @property
    def label(self) -> str:
        """The name as a table or a sentence can hold it."""
        return labelled(self.name)


class Figures:
    """What a verdict is found from.

    Attributes:
        start: where the part that is looked at begins; seconds.
        end: where it ends.
        length: its length.
        ended: inputs that ended in it.
        calls: the slices of each stage.
        running: how many calls of each stage ran at once, over time.
        peaks: the most of them.
        counters: the counters, by name.
        measured: CPU time per second, where a counter ``cpu`` says so.
        cores: cores held by workers: what the counter ``cores`` says, or else lanes at work but for threads that only wait.
        stages: where the time of each stage went.
    """

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        slices = recording.slices
        self.end = max(recording.duration, max((one.ended for one in slices), default=0.0))
        # Of a run whose first events are gone only the rest is looked at.
        self.start = min((one.began for one in slices), default=0.0) if recording.lost else 0.0
        self.length = self.end - self.start
        self.ended = sum(
            life.outcome in ("done", "failed", "filtered") and life.ended >= self.start
            for life in recording.inputs.values()
        )
        self.calls: list[list[Slice]] = [[] for _ in recording.stages]
        for one in slices:
            if one.stage >= 0:
                self.calls[one.stage].append(one)
        self.running = [Steps.of_spans((c.began, c.ended) for c in calls) for calls in self.calls]
        self.peaks = [running.usual_peak() for running in self.running]
        self.counters = {counter.name: Steps(counter.samples) for counter in recording.counters}
        lanes = recording.lanes
        in_lanes = Steps.of_spans(
            (one.began, one.ended)
            for one in slices
            if lanes[one.lane].kind in ("thread", "process")
            and not lanes[one.lane].name.startswith("blocking")
        )
        self.measured = self.counters.get("cpu")
        self.cores = self.counters.get("cores") or in_lanes
        self.stages = tuple(self._stage(n) for n in range(len(recording.stages)))

    def _stage(self, n: int) -> StageTime:
        stage, calls, running = self.recording.stages[n], self.calls[n], self.running[n]
        waited = sum(call.waited for call in calls)
        pooled = stage.on in ("threads", "processes")
        no_input, no_room = self._idle(n)
        return StageTime(
            name=stage.name,
            on=stage.on,
            calls=len(calls),
            items=sum(call.items for call in calls),
            failed=sum(call.outcome == FAILED for call in calls),
            retried=sum(call.outcome == RETRIED for call in calls),
            busy=sum(call.ended - call.began for call in calls),
            waited_slot=waited if pooled else 0.0,
            waited_limit=0.0 if pooled else waited,
            wait_input=no_input,
            wait_room=no_room,
            at_once=running.mean(self.start, self.end),
            peak=int(self.peaks[n]),
            p50=median(call.ended - call.began for call in calls) if calls else 0.0,
        )

    def _idle(self, n: int) -> tuple[float | None, float | None]:
        """Return how long a stage did nothing: for want of input, and for want of room."""
        stages = self.recording.stages
        queue = self.counters.get(f"queue: {stages[n].name}")
        if queue is None:
            return None, None
        behind = (
            self.counters.get(f"queue: {stages[n + 1].name}") if n + 1 < len(stages) else Steps(())
        )
        full = behind.peak * 0.9 if behind else 0.0
        no_input = no_room = 0.0
        for length, (running, queued, after) in together(
            (self.running[n], queue, behind or Steps(())), self.start, self.end
        ):
            if not running and not queued:
                no_input += length
            elif not running and full and after >= full:
                no_room += length
        return no_input, None if behind is None else no_room

    def cores_over_time(self) -> Iterator[float]:
        """Return the mean number of cores in use in each part of the run."""
        part = self.length / PARTS
        for n in range(PARTS):
            yield self.cores.mean(self.start + n * part, self.start + (n + 1) * part)

    def known_limit(self, n: int) -> float | None:
        """Return how many calls of a stage might run at once on average, if a counter says so and there was a limit."""
        name = self.recording.stages[n].name
        # The first is what a recording may say, the second what an `Adaptive` came to.
        counter = self.counters.get(f"limit: {name}") or self.counters.get(f"concurrency: {name}")
        mean = counter.mean(self.start, self.end) if counter else 0.0
        return mean if 0 < mean < math.inf else None

    def limit(self, n: int) -> float:
        """Return the same; where nothing says so, the most that ran."""
        return self.known_limit(n) or max(1.0, self.peaks[n])

    @cached_property
    def pooled(self) -> list[int]:
        """The stages that share the cores: those of threads and processes, without those whose threads only wait."""
        stages, lanes = self.recording.stages, self.recording.lanes
        waits = {
            one.stage
            for one in self.recording.slices
            if lanes[one.lane].name.startswith("blocking")
        }
        return [
            n
            for n, stage in enumerate(stages)
            if stage.on == "processes"
            or (stage.on == "threads" and n not in waits and self.peaks[n] <= self.recording.cores)
        ]

    def waits(self, n: int) -> bool:
        """Tell whether the workers of a CPU stage wait for something else than a core: as far as their CPU time was measured."""
        share = self.recording.stages[n].computing
        if share is None or share >= _COMPUTING:
            return False
        # Many threads behind the interpreter lock compute little each, but one core's worth together.
        at_work = self.running[n].while_any(self.start, self.end)
        cores = share * self.stages[n].busy / (at_work or 1.0)
        return self.stages[n].on == "processes" or cores < _ONE_CORE

    @property
    def computing(self) -> float | None:
        """The share of their time in which the workers that hold cores use them; ``None`` where it was not measured."""
        busy = cpu = 0.0
        for n in self.pooled:
            share = self.recording.stages[n].computing
            if share is not None:
                busy += self.stages[n].busy
                cpu += share * self.stages[n].busy
        return cpu / busy if busy else None

    @cached_property
    def alone(self) -> list[int]:
        """The stages that are a resource of their own."""
        return [
            n
            for n, stage in enumerate(self.recording.stages)
            if stage.on != "engine" and n not in self.pooled
        ]

    def crowded(self, n: int) -> bool:
        """Tell whether something stood in front of a stage most of the time; not where its queue was not recorded."""
        return self.held(self.recording.stages[n].name) >= _CROWDED

    @property
    def untaken(self) -> float:
        """The share of the run for which results stood there and nobody took them; 0 where that was not recorded."""
        # A stage of that name has a queue of its own, which can't be told from it.
        named = any(stage.name == _RESULTS for stage in self.recording.stages)
        return 0.0 if named else self.held(_RESULTS)

    def held(self, name: str) -> float:
        """Return the share of the run for which a queue held something; 0 where it was not recorded."""
        queue = self.counters.get(f"queue: {name}")
        if queue is None or not self.length:
            return 0.0
        return queue.while_any(self.start, self.end) / self.length

    def trying_again(self, n: int) -> float:
        """Return the share of the run for which an item of a stage waited for its next attempt."""
        since: dict[int, float] = {}
        spans: list[tuple[float, float]] = []
        for call in sorted(self.calls[n], key=lambda call: call.began):
            for number in call.inputs:
                if number in since:
                    spans.append((since.pop(number), call.began))
                if call.outcome == RETRIED:
                    since[number] = call.ended
        waits = Steps.of_spans(spans)
        return (
            sum(length for length, (some,) in together((waits,), self.start, self.end) if some)
            / self.length
        )

    def waiting(self, n: int) -> tuple[float, float]:
        """Return for how long somebody waited for a stage's limit, and for how much of that all its places were taken."""
        limit = min(self.limit(n), self.peaks[n])
        waits = Steps.of_spans((call.began - call.waited, call.began) for call in self.calls[n])
        total = taken = 0.0
        for length, (waiting, running) in together((waits, self.running[n]), self.start, self.end):
            if waiting:
                total += length
                if running >= limit * 0.95:
                    taken += length
        return total, taken


def in_words(value: float | None) -> str:
    """Return seconds as people write them: ``1.5 s``, ``20.0 ms``; ``-`` for ``None``."""
    if value is None:
        return "-"
    if value >= 100 or not value:
        return f"{value:,.0f} s"
    if value >= 1:
        return f"{value:.1f} s"
    return f"{value * 1e3:.1f} ms" if value >= 1e-3 else f"{value * 1e6:.0f} us"
