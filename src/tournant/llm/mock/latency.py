"""How long answers take: a figure, or a distribution of seconds.

A draw takes a number between 0 and 1 and gives seconds, so whoever holds the number holds the result: that is what
makes the provider repeatable.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

from tournant.errors import TournantError, short


class InvalidMockSettings(TournantError, ValueError):
    """A setting of the provider to test against is refused: its name or its value can't be."""


_NORMAL = NormalDist()
#: Name: how it is written, and how many figures it takes.
_FORMS = {
    "uniform": ("uniform:LOW,HIGH", 2),
    "exponential": ("exponential:MEAN", 1),
    "lognormal": ("lognormal:MEDIAN,SIGMA", 2),
}
_MEND = (
    "give seconds (0.2), or uniform:LOW,HIGH, exponential:MEAN or lognormal:MEDIAN,SIGMA in seconds, "
    "for example lognormal:0.5,0.4"
)


@dataclass(frozen=True, slots=True)
class Latency:
    """A distribution of seconds.

    Attributes:
        kind: ``"constant"``, ``"uniform"``, ``"exponential"`` or ``"lognormal"``.
        first: The constant, the lower bound, the mean, or the median.
        second: The upper bound, or the sigma of the logarithm; otherwise 0.
    """

    kind: str
    first: float
    second: float = 0.0

    @property
    def constant(self) -> bool:
        """Whether every draw gives the same."""
        return self.kind == "constant"

    def draw(self, chance: float) -> float:
        """Return the seconds that belong to a number between 0 and 1, both excluded: the distribution's quantile."""
        if self.kind == "constant":
            return self.first
        if self.kind == "uniform":
            return self.first + (self.second - self.first) * chance
        if self.kind == "exponential":
            return -self.first * math.log1p(-chance)
        return self.first * math.exp(self.second * _NORMAL.inv_cdf(chance))


def latency_from(value: object, name: str) -> Latency:
    """Read a latency.

    Args:
        value: Seconds as a number or as text, or ``uniform:LOW,HIGH``, ``exponential:MEAN``, ``lognormal:MEDIAN,SIGMA``.
        name: What it is called where it was given, for the message.

    Raises:
        InvalidMockSettings: when it reads otherwise, or a figure is negative or not finite.
    """
    if isinstance(value, Latency):
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return Latency("constant", _seconds(value, value, name))
    if not isinstance(value, str):
        raise InvalidMockSettings(f"{name}={short(value)} is no latency: {_MEND}")
    kind, colon, rest = value.strip().partition(":")
    if not colon:
        return Latency("constant", _seconds(kind, value, name))
    if kind not in _FORMS:
        raise InvalidMockSettings(f"{name}={short(value)} is no latency: {_MEND}")
    form, count = _FORMS[kind]
    figures = [_seconds(part, value, name) for part in rest.split(",")]
    if len(figures) != count:
        raise InvalidMockSettings(f"{name}={short(value)}: it is written {form}")
    if kind == "uniform" and figures[0] > figures[1]:
        raise InvalidMockSettings(
            f"{name}={short(value)}: the lower bound is above the upper one; write {form}"
        )
    return Latency(kind, *figures)


def _seconds(figure: object, value: object, name: str) -> float:
    try:
        seconds = float(figure)  # type: ignore[arg-type]
    except ValueError:
        raise InvalidMockSettings(f"{name}={short(value)} is no latency: {_MEND}") from None
    if not 0 <= seconds < math.inf:
        raise InvalidMockSettings(
            f"{name}={short(value)}: give figures of 0 or more, and finite ones"
        )
    return seconds
