"""How many per second went through lately: a sliding count over a few seconds."""

from __future__ import annotations

from collections import deque

_SLICE = 0.25
_SLICES = 20


class Meter:
    """Counts what passed in the last five seconds, in quarters of a second."""

    __slots__ = ("_began", "_slices", "total")

    def __init__(self, now: float) -> None:
        self.total = 0.0
        self._began = now
        self._slices: deque[tuple[int, float]] = deque()

    def count(self, now: float, amount: float) -> None:
        """Add `amount` that passed at `now`."""
        self.total += amount
        index = int(now / _SLICE)
        if self._slices and self._slices[-1][0] == index:
            self._slices[-1] = (index, self._slices[-1][1] + amount)
            return
        self._slices.append((index, amount))
        if len(self._slices) > _SLICES:
            self._slices.popleft()

    def per_second(self, now: float) -> float:
        """Return the rate over the last five seconds, or since the beginning where that is less, but at least a quarter of one."""
        oldest = int(now / _SLICE) - _SLICES
        while self._slices and self._slices[0][0] <= oldest:
            self._slices.popleft()
        if not self._slices:
            return 0.0
        began = max(self._began, self._slices[0][0] * _SLICE)
        return sum(amount for _, amount in self._slices) / max(_SLICE, now - began)
