"""From a run's ring buffers to its `Recording`."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from tournant.observe.events import HEAVY, Odd
from tournant.observe.recording import (
    OK,
    Counter,
    InputSpan,
    Lane,
    Mark,
    Recording,
    Slice,
    Stage,
)

if TYPE_CHECKING:
    from tournant.observe.events import Call, Events, Stretch

#: Samples of the cores in use: one for each moment at which it changed, or, of longer runs, so many averages.
_BINS = 1000
#: The lanes' order and what they are called.
_KINDS = {
    "threads": ("thread", "thread"),
    "blocking": ("thread", "blocking thread"),
    "processes": ("process", "process"),
}
#: A unit that went through every step.
_EVEN = Odd(0, None, OK, True)


def assemble(events: Events, summary: str = "") -> Recording:
    """Return the recording of a run that has ended."""
    return _Assembly(events).recording(summary)


class _Assembly:
    """The making of one recording."""

    def __init__(self, events: Events) -> None:
        self.events = events
        self.zero = events.began
        self.duration = max(0.0, (events.ended or events.began) - events.began)
        #: By the index of a lane here: its slices, in whatever order.
        self.slices: list[Slice] = []
        self.lanes: list[Lane] = []
        self._members: dict[int, tuple[int, ...]] = {}
        # Inputs that the ledger skipped have places in the source's order too.
        self._skips = [at for at, _, _ in events.inputs.skipped]

    def recording(self, summary: str) -> Recording:
        events = self.events
        self._loop_slices()
        loop_slices = len(self.slices)
        shared = self._worker_slices()
        inputs = self._inputs()
        cores = self._cores([s for s in self.slices[loop_slices:] if s.lane in shared])
        self.slices.sort(key=lambda s: s.began)
        return Recording(
            title=" > ".join(name for name, _ in events.stages)[:120] or "run",
            began=events.unix,
            duration=self.duration,
            cores=events.cores,
            stages=tuple(self._stages()),
            lanes=tuple(self.lanes),
            slices=tuple(self.slices),
            inputs=inputs,
            counters=(*cores, *self._queues(), *self._limits()),
            marks=tuple(self._marks()),
            lost=events.lost,
            summary=summary,
        )

    def _stages(self) -> Iterator[Stage]:
        computing: dict[int, float] = {}
        for ring in self.events.stretches.values():
            if ring.busy > 0:
                share = round(min(1.0, ring.cpu / ring.busy), 4)
                computing.update(dict.fromkeys(range(ring.first, ring.first + ring.steps), share))
        for n, (name, on) in enumerate(self.events.stages):
            yield Stage(name, on, computing.get(n))

    def at(self, clock: float) -> float:
        """Return seconds since the run began, within the run."""
        return min(max(0.0, clock - self.zero), self.duration)

    # Slices.

    def _loop_slices(self) -> None:
        """One lane per stage that ran on the loop, or one for all of an inline run."""
        events = self.events
        if events.inline:
            self.lanes.append(Lane("loop", "inline", events.pid))
        for stage, calls in enumerate(events.calls):
            mine = [call for call in calls.said if call.lane < 0]
            if not mine and not calls.blocks:
                continue
            if events.inline:
                lane = 0
            else:
                lane = len(self.lanes)
                self.lanes.append(Lane("loop", events.stages[stage][0], events.pid))
            waits: dict[float, float] = dict(calls.waits)
            for seconds, ends, who in calls.blocks:
                for spent, ended, number in zip(seconds, ends, who, strict=True):
                    # The end was read after the beginning, so this gives the beginning to the last bit.
                    began = ended - spent
                    self._add(lane, stage, began, ended, number, 1, OK, waits.get(began, 0.0))
            for call in mine:
                self._say(lane, stage, call, waits.get(call.began, 0.0))

    def _worker_slices(self) -> set[int]:
        """One lane per worker. Returns the lanes whose workers hold a core."""
        events = self.events
        places: dict[int, int] = {}
        shared: set[int] = set()
        for kind, (shown, name) in _KINDS.items():
            numbers = [n for n, lane in enumerate(events.lanes) if lane[0] == kind]
            for count, number in enumerate(numbers, 1):
                places[number] = len(self.lanes)
                if kind != "blocking":
                    shared.add(len(self.lanes))
                self.lanes.append(Lane(shown, f"{name} {count}", events.lanes[number][2]))
        begin = len(self.slices)
        for ring in events.stretches.values():
            for stretch in ring.kept:
                self._lay_out(places[stretch.lane], ring.first, stretch)
        for stage, calls in enumerate(events.calls):
            for call in calls.said:
                if call.lane >= 0:
                    self._say(places[call.lane], stage, call, 0.0)
        self.slices[begin:] = _apart(self.slices[begin:])
        return shared

    def _say(self, lane: int, stage: int, call: Call, waited: float) -> None:
        self._add(
            lane, stage, call.began, call.ended, call.who, call.items, call.outcome, call.waited or waited
        )  # fmt: skip

    def _add(
        self,
        lane: int,
        stage: int,
        began: float,
        ended: float,
        who: int | Sequence[int],
        items: int,
        outcome: str,
        waited: float,
    ) -> None:
        begin = self.at(began)
        self.slices.append(
            Slice(
                lane, stage, begin, max(begin, self.at(ended)), self._numbers(who), items, outcome, waited
            )
        )  # fmt: skip

    def _lay_out(self, lane: int, first: int, stretch: Stretch) -> None:
        """Put what a worker did one after the other, as it did it: per unit where they are heavy, else per stage."""
        times, cursor, waited = stretch.times, stretch.began, stretch.waited
        if times and isinstance(times[0], tuple):
            for step, (seconds, count) in enumerate(times):
                if count:
                    rows = len(stretch.who) if stretch.sizes is not None else count
                    self._add(
                        lane, first + step, cursor, cursor + seconds, stretch.who, rows, OK, waited
                    )
                    cursor, waited = cursor + seconds, 0.0
            return
        columns = [list(column) for column in times]
        excess = sum(map(sum, columns)) - (stretch.ended - stretch.began)
        if stretch.flat and columns[-1] and excess > 0:
            # The fan-out that ends first here began in an earlier stretch.
            columns[-1][0] = max(0.0, columns[-1][0] - excess)
        for step, who, items, seconds, outcome in self._units(stretch, columns):
            self._add(lane, first + step, cursor, cursor + seconds, who, items, outcome, waited)
            cursor, waited = cursor + seconds, 0.0
        if stretch.open is not None and stretch.ended > cursor:
            last = first + len(columns) - 1
            self._add(lane, last, cursor, stretch.ended, stretch.open, 0, OK, waited)

    def _units(
        self, stretch: Stretch, columns: list[list[float]]
    ) -> Iterator[tuple[int, Sequence[int], int, float, str]]:
        """Go through a stretch's units: (step, numbers, items, seconds, outcome) of each slice."""
        who, sizes = stretch.who, stretch.sizes
        count = len(sizes) if sizes is not None else len(who)
        odd = {one.unit: one for one in stretch.odd}
        heavy = count > 0 and sum(map(sum, columns)) / count >= HEAVY
        taken = [0] * len(columns)
        row, unit = 0, 0
        while unit < count:
            end = unit + 1
            if not heavy and unit not in odd:
                while end < count and end not in odd:
                    end += 1
            rows = sum(sizes[unit:end]) if sizes is not None else end - unit
            numbers = who[row : row + rows]
            row += rows
            one = odd.get(unit, _EVEN)
            last = len(columns) - 1 if one.step is None else max(0, one.step)
            # A result that could not be sent back counts against the first step, as in the run's report.
            told = 0 if one.step is None else last
            for step, column in enumerate(columns[: last + 1]):
                spent = 0.0
                if step < last or one.timed:
                    spent = sum(column[taken[step] : taken[step] + end - unit])
                    taken[step] += end - unit
                yield step, numbers, rows, spent, one.outcome if step == told else OK
            unit = end

    def _numbers(self, who: int | Sequence[int]) -> tuple[int, ...]:
        """Return the inputs behind numbers of inputs and batches, each once."""
        if isinstance(who, int):
            return (self._place(who),) if who >= 0 else self._of_batch(who)
        found: dict[int, None] = {}
        for number in who:
            if number >= 0:
                found[self._place(number)] = None
            else:
                found.update(dict.fromkeys(self._of_batch(number)))
        return tuple(found)

    def _of_batch(self, number: int) -> tuple[int, ...]:
        known = self._members.get(number)
        if known is None:
            known = self._members[number] = self._numbers(self.events.batches.get(number, ()))
        return known

    def _place(self, number: int) -> int:
        """Return an input's place in the source's order, in which those that the ledger skipped have places too."""
        return number + bisect_right(self._skips, number) if self._skips else number

    # Inputs.

    def _inputs(self) -> dict[int, InputSpan]:
        inputs = self.events.inputs
        starts = [number for number, _ in inputs.since]
        times = [time for _, time in inputs.since]
        last: dict[int, float] = {}
        for one in self.slices:
            for place in one.inputs:
                last[place] = max(one.ended, last.get(place, 0.0))
        bounds: dict[int, tuple[float, float]] = {}
        before_it = 0.0
        for when, ended in inputs.looks:
            look = self.at(when)
            bounds.update(dict.fromkeys(ended, (before_it, look)))
            before_it = look
        spans: dict[int, InputSpan] = {}
        # An input that is in no look has not ended, unless its look is gone.
        for number in (*sorted(inputs.behind), *range(inputs.known, self.events.taken)):
            at = bisect_right(starts, number) - 1
            began = self.at(times[at]) if at >= 0 else 0.0
            end, outcome = self.duration, "interrupted"
            place = self._place(number)
            if number in bounds:
                least, most = bounds[number]
                end = min(max(last.get(place, least), least), most)
                outcome = inputs.outcomes.get(number, "done")
            key = str(inputs.keys.get(number, number))
            spans[place] = InputSpan(key, began, max(began, end), outcome)
        for before, (number, key, time) in enumerate(inputs.skipped):
            when = self.at(time)
            spans[number + before] = InputSpan(str(key), when, when, "skipped")
        return dict(sorted(spans.items())) if inputs.skipped else spans

    # Counters and marks.

    def _cores(self, slices: list[Slice]) -> list[Counter]:
        """Return the cores in use: exactly, or, where that would be a great many samples, as averages."""
        if not slices or self.duration <= 0:
            return []
        samples: list[tuple[float, float]]
        if 2 * len(slices) <= _BINS:
            steps: dict[float, int] = {0.0: 0}
            for one in slices:
                steps[one.began] = steps.get(one.began, 0) + 1
                steps[one.ended] = steps.get(one.ended, 0) - 1
            level, samples = 0, []
            for when in sorted(steps):
                if steps[when] or not samples:
                    level += steps[when]
                    samples.append((when, float(level)))
        else:
            width = self.duration / _BINS
            bins = [0.0] * (_BINS + 1)
            for one in slices:
                first, last = int(one.began / width), int(one.ended / width)
                for n in range(first, min(last, _BINS) + 1):
                    bins[n] += max(0.0, min(one.ended, (n + 1) * width) - max(one.began, n * width))
            samples = [(n * width, round(spent / width, 3)) for n, spent in enumerate(bins[:_BINS])]
            samples.append((self.duration, 0.0))
        return [Counter("cores", "cores", tuple(samples))]

    def _queues(self) -> Iterator[Counter]:
        for n, name in enumerate(self.events.queues):
            samples: list[tuple[float, float]] = []
            for when, depths in self.events.samples:
                if not samples or samples[-1][1] != depths[n]:
                    samples.append((self.at(when), float(depths[n])))
            if any(depth for _, depth in samples):
                yield Counter(f"queue: {name}", "items", tuple(samples))

    def _limits(self) -> Iterator[Counter]:
        for (name, unit), kept in self.events.limits.items():
            yield Counter(name, unit, tuple((self.at(when), value) for when, value in kept))

    def _marks(self) -> list[Mark]:
        events, lanes = self.events, {lane.pid: n for n, lane in enumerate(self.lanes)}
        marks = [
            Mark(kind, self.at(when), text, -1, min(lasted, self.duration - self.at(when)))
            for kind, when, text, lasted in list(events.marks)
        ]
        for kind, _, pid, since in events.lanes:
            if kind == "processes" and since >= events.began:
                text = f"worker process {pid} started"
                marks.append(Mark("worker", self.at(since), text, lanes.get(pid, -1)))
        return sorted(marks, key=lambda mark: mark.at)


def _apart(slices: list[Slice]) -> list[Slice]:
    """Return workers' slices such that none on a lane ends after the next begins.

    What a worker did it did one after the other; but when it was cut off is known only as late as the loop heard of it.
    """
    slices = sorted(slices, key=lambda s: (s.lane, s.began, s.ended))
    for n, (one, following) in enumerate(pairwise(slices)):
        if one.lane == following.lane and one.ended > following.began:
            slices[n] = one._replace(ended=following.began)
    return slices
