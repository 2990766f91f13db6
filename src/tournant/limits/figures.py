"""The figures of a limit: how many in how long, written as people say it.

Pure values and the one error of this room. Nothing here keeps state or reads a clock.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from tournant.errors import TournantError, short

_UNITS = {
    "s": 1.0, "sec": 1.0, "second": 1.0, "seconds": 1.0,
    "m": 60.0, "min": 60.0, "minute": 60.0, "minutes": 60.0,
    "h": 3_600.0, "hour": 3_600.0, "hours": 3_600.0,
    "d": 86_400.0, "day": 86_400.0, "days": 86_400.0,
}  # fmt: skip
_NAMES = {1.0: "s", 60.0: "min", 3_600.0: "hour", 86_400.0: "day"}
_SCALES = {"": 1.0, "k": 1e3, "m": 1e6}
_FORM = re.compile(
    r"\s*([0-9][0-9_,]*(?:\.[0-9]+)?)\s*([kKM]?)\s*(?:/|per\s)\s*([0-9]+(?:\.[0-9]+)?)?\s*([a-z]+)\s*"
)


class InvalidLimit(TournantError, ValueError):
    """A limit's description is refused: a figure, a key or a bound can't be as it was given."""


@dataclass(frozen=True, slots=True)
class Rate:
    """So many in so long: ``Rate(500, 60)`` is 500 a minute.

    Attributes:
        amount: How many, above 0.
        seconds: In how many seconds, above 0.

    Raises:
        InvalidLimit: when either is not a finite number above 0.
    """

    amount: float
    seconds: float

    def __post_init__(self) -> None:
        """Refuse what is no rate."""
        for name in ("amount", "seconds"):
            value = getattr(self, name)
            if not is_number(value) or not 0 < value < math.inf:
                raise InvalidLimit(f"Rate({name}={value!r}): give a finite number above 0")

    @property
    def per_second(self) -> float:
        """How many per second."""
        return self.amount / self.seconds

    @classmethod
    def parse(cls, text: str, name: str = "rate") -> Rate:
        """Read ``"500/min"``, ``"200_000/min"``, ``"2M/day"``, ``"40k/min"`` or ``"100/10s"``.

        Args:
            text: A number (with ``_`` or ``,`` between digits; ``k`` and ``M`` for thousands and millions), a slash
                or "per", and a unit: s, min, hour, day and their usual spellings, or a count of them.
            name: What the figure is called where it was given, for the message.

        Raises:
            InvalidLimit: when it reads otherwise.
        """
        form = _FORM.fullmatch(text)
        if form is None or form[4] not in _UNITS:
            raise InvalidLimit(
                f"{name}={short(text)}: give a figure and a unit of time, for example '500/min', '10/s' or '2M/day'"
            )
        amount = float(form[1].replace("_", "").replace(",", "")) * _SCALES[form[2].lower()]
        seconds = float(form[3] or 1.0) * _UNITS[form[4]]
        if not amount or not seconds:
            raise InvalidLimit(
                f"{name}={short(text)}: a limit of nothing lets nothing pass; give a figure above 0, or leave it out"
            )
        return cls(amount, seconds)

    def __str__(self) -> str:
        unit = _NAMES.get(self.seconds, f"{self.seconds:g}s")
        return f"{counted(self.amount)}/{unit}"


def rate_from(value: object, name: str) -> Rate | None:
    """Return `value` as a `Rate`: a string is read, ``None`` stays.

    Raises:
        InvalidLimit: for anything else, a bare number above all: it doesn't say in how long.
    """
    if value is None or isinstance(value, Rate):
        return value
    if isinstance(value, str):
        return Rate.parse(value, name)
    mend = f"'{value}/min'" if is_number(value) else "'500/min'"
    raise InvalidLimit(
        f"{name}={short(value)}: say how many in how long, as text, for example {mend}"
    )


def is_number(value: object) -> bool:
    """Tell whether `value` is an int or float, and no bool."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def counted(amount: float) -> str:
    """Write a count for people: whole where it is large, with a digit behind the point where it is small."""
    return f"{amount:_.0f}" if amount >= 100 or amount == round(amount) else f"{amount:.3g}"


def per_unit(per_second: float, seconds: float) -> str:
    """Write a speed in the unit in which its limit was given: ``per_unit(8.33, 60)`` is ``"500/min"``."""
    return str(Rate(max(per_second * seconds, 1e-9), seconds))
