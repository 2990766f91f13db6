"""How much of something was in use over time, as steps: what advice and chart reckon with.

Pure arithmetic on numbers; nothing here knows what is counted.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence


class Steps:
    """A quantity that changes at some moments and holds its value between them; 0 before the first.

    Args:
        changes: Pairs of the moment and the new value, sorted by moment. Of several at one moment the last counts.
    """

    __slots__ = ("_areas", "peak", "times", "values")

    def __init__(self, changes: Iterable[tuple[float, float]]) -> None:
        self.times: list[float] = []
        self.values: list[float] = []
        #: The area below the steps up to each moment.
        self._areas: list[float] = []
        area = 0.0
        for at, value in changes:
            if self.times:
                if at <= self.times[-1]:
                    self.values[-1] = value
                    continue
                area += (at - self.times[-1]) * self.values[-1]
            self.times.append(at)
            self.values.append(value)
            self._areas.append(area)
        #: The highest value.
        self.peak = max(self.values, default=0.0)

    @classmethod
    def of_spans(cls, spans: Iterable[tuple[float, float]]) -> Steps:
        """Return how many of some stretches of time were under way at once."""
        changes: list[tuple[float, int]] = []
        for began, ended in spans:
            if ended > began:
                changes += ((began, 1), (ended, -1))
        changes.sort()  # what ends at a moment comes before what begins at it

        def levels() -> Iterator[tuple[float, float]]:
            level = 0
            for at, change in changes:
                level += change
                yield at, level

        return cls(levels())

    def __bool__(self) -> bool:
        return bool(self.times)

    def at(self, moment: float) -> float:
        """Return the value at a moment."""
        n = bisect_right(self.times, moment) - 1
        return self.values[n] if n >= 0 else 0.0

    def area(self, start: float, end: float) -> float:
        """Return the value summed over a stretch of time: seconds times value."""
        return self._upto(end) - self._upto(start)

    def mean(self, start: float, end: float) -> float:
        """Return the mean value over a stretch of time; 0 over none."""
        return self.area(start, end) / (end - start) if end > start else 0.0

    def while_any(self, start: float, end: float) -> float:
        """Return for how long the value was not 0 in a stretch of time."""
        return sum(length for length, (value,) in together((self,), start, end) if value)

    def usual_peak(self, share: float = 0.001) -> float:
        """Return the highest value that was held, or exceeded, for at least such a share of the whole time.

        What ends and what begins at one moment may seem to overlap by a rounding error; that makes no peak.
        """
        if not self.times:
            return 0.0
        held: dict[float, float] = {}
        for n, value in enumerate(self.values[:-1]):
            held[value] = held.get(value, 0.0) + self.times[n + 1] - self.times[n]
        least, total = share * (self.times[-1] - self.times[0]), 0.0
        for value in sorted(held, reverse=True):
            total += held[value]
            if total >= least:
                return value
        return self.peak

    def _upto(self, moment: float) -> float:
        n = bisect_right(self.times, moment) - 1
        return self._areas[n] + (moment - self.times[n]) * self.values[n] if n >= 0 else 0.0


def together(
    steps: Sequence[Steps], start: float, end: float
) -> Iterator[tuple[float, tuple[float, ...]]]:
    """Return the stretches of time in which none of several quantities changes: the length of each, and their values."""
    moments = sorted({start, end, *(at for one in steps for at in one.times if start < at < end)})
    places = [bisect_right(one.times, start) - 1 for one in steps]
    for n, moment in enumerate(moments[:-1]):
        for k, one in enumerate(steps):
            while places[k] + 1 < len(one.times) and one.times[places[k] + 1] <= moment:
                places[k] += 1
        values = tuple(
            one.values[place] if place >= 0 else 0.0
            for one, place in zip(steps, places, strict=True)
        )
        yield moments[n + 1] - moment, values
