"""What a provider's reply says about its limits, in the spellings of OpenAI and Anthropic.

Pure reading: text in, numbers out. What cannot be read counts as not said; a proxy's odd header must never fail a call.
Sources: the rate-limit pages of both providers' API documentation; RFC 9110, section 10.2.3 (Retry-After).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from tournant.errors import short
from tournant.limits.figures import InvalidLimit

Headers = Mapping[str, str] | Iterable[tuple[str, str]]

LONGEST_WAIT = 86_400.0
"""Seconds: whoever says that one is to wait longer is not believed."""
_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|us|µs|ns|d|h|m|s)")
_PARTS = re.compile(rf"(?:{_PART.pattern})+")
_SECONDS = {
    "d": 86_400.0,
    "h": 3_600.0,
    "m": 60.0,
    "s": 1.0,
    "ms": 1e-3,
    "us": 1e-6,
    "µs": 1e-6,
    "ns": 1e-9,
}


@dataclass(frozen=True, slots=True)
class Advertised:
    """What was said of one kind of limit.

    Attributes:
        limit: How many in one window, or ``None`` where it was not said.
        remaining: How many are left now, or ``None``.
        reset: Seconds until the limit is whole again, or ``None``.
    """

    limit: float | None = None
    remaining: float | None = None
    reset: float | None = None


@dataclass(frozen=True, slots=True)
class HeaderFacts:
    """What one reply's headers said.

    Attributes:
        requests: Of the limit on requests, or ``None``.
        tokens: Of the limit on tokens, or ``None``. Input and output limits that are given apart are added up.
        retry_after: Seconds to wait, between 0 and a day, or ``None``.
    """

    requests: Advertised | None = None
    tokens: Advertised | None = None
    retry_after: float | None = None


def read_headers(headers: Headers, wall: float) -> HeaderFacts:
    """Read what `headers` say about limits.

    Args:
        headers: A reply's headers, as a mapping or as pairs; upper and lower case are alike.
        wall: Seconds since 1970, to measure dates against. A ``Date`` header goes first: both dates are
            then by the provider's clock, and a wrong clock on this machine does no harm.

    Raises:
        InvalidLimit: when it is neither a mapping nor pairs.
    """
    said: dict[str, str] = {}
    for name, value in _pairs(headers):
        lower = _text(name).lower()
        if "ratelimit" in lower or lower in {"retry-after", "retry-after-ms", "date"}:
            said[lower] = _text(value)
    if not said or (len(said) == 1 and "date" in said):
        return HeaderFacts()
    theirs = _http_date(said["date"]) if "date" in said else None
    base = wall if theirs is None else theirs
    return HeaderFacts(
        requests=_openai(said, "requests", base) or _anthropic(said, "requests", base),
        tokens=_openai(said, "tokens", base) or _anthropic_tokens(said, base),
        retry_after=_retry_after(said, base),
    )


def _pairs(headers: Headers) -> list[tuple[object, object]]:
    pairs = headers.items() if hasattr(headers, "items") else headers
    try:
        return [(name, value) for name, value in pairs]
    except (TypeError, ValueError):
        raise InvalidLimit(
            f"observe({short(headers)}): give a reply's headers, as a mapping or as pairs of name and value"
        ) from None


def _text(value: object) -> str:
    """Return a name or value as text: some clients give bytes, and people numbers."""
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


def seconds_of(text: str) -> float | None:
    """Read a duration: ``"6m0s"``, ``"1s"``, ``"20ms"``, ``"1h2m3.5s"``, or bare seconds. ``None`` if it is none."""
    text = text.strip()
    if _PARTS.fullmatch(text):
        return sum(float(number) * _SECONDS[unit] for number, unit in _PART.findall(text))
    return _number(text)


def _retry_after(said: Mapping[str, str], base: float) -> float | None:
    milliseconds = _number(said.get("retry-after-ms", ""))
    if milliseconds is not None:
        return min(milliseconds / 1_000, LONGEST_WAIT)
    text = said.get("retry-after")
    if text is None:
        return None
    seconds = seconds_of(text)
    if seconds is None:
        date = _http_date(text)
        if date is None:
            return None
        seconds = max(0.0, date - base)
    return min(seconds, LONGEST_WAIT)


def _openai(said: Mapping[str, str], kind: str, base: float) -> Advertised | None:
    return _advertised(
        said.get(f"x-ratelimit-limit-{kind}"),
        said.get(f"x-ratelimit-remaining-{kind}"),
        said.get(f"x-ratelimit-reset-{kind}"),
        base,
    )


def _anthropic(said: Mapping[str, str], kind: str, base: float) -> Advertised | None:
    stem = f"anthropic-ratelimit-{kind}-"
    return _advertised(
        said.get(stem + "limit"), said.get(stem + "remaining"), said.get(stem + "reset"), base
    )


def _anthropic_tokens(said: Mapping[str, str], base: float) -> Advertised | None:
    parts = [_anthropic(said, f"{side}-tokens", base) for side in ("input", "output")]
    both = _anthropic(said, "tokens", base)
    given = [part for part in parts if part is not None]
    if both is None:
        if not given:
            return None
        both = Advertised(
            _sum([part.limit for part in given]),
            _sum([part.remaining for part in given]),
            max((part.reset for part in given if part.reset is not None), default=None),
        )
    if any(part.remaining == 0 for part in given):
        # One side is used up: the sum would hide it.
        return Advertised(both.limit, 0.0, both.reset)
    return both


def _advertised(
    limit: str | None, remaining: str | None, reset: str | None, base: float
) -> Advertised | None:
    of = _number(limit or "") or None
    left = _number(remaining or "")
    if of is None and left is None:
        return None
    return Advertised(of, left, None if reset is None else _until(reset, base))


def _until(text: str, base: float) -> float | None:
    """Read when a limit is whole again: a duration, a date (RFC 3339), or seconds or milliseconds since 1970."""
    seconds = seconds_of(text)
    if seconds is not None:
        if seconds > 1e11:
            seconds /= 1_000
        return seconds if seconds < 1e9 else max(0.0, seconds - base)
    from datetime import UTC, datetime

    try:
        date = datetime.fromisoformat(text.strip())
        return max(0.0, (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - base)
    except (ValueError, OverflowError):
        return None


@lru_cache(maxsize=16)
def _http_date(text: str) -> float | None:
    from datetime import UTC
    from email.utils import parsedate_to_datetime

    try:
        date = parsedate_to_datetime(text)
        return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def _number(text: str) -> float | None:
    try:
        value = float(text.replace(",", ""))
    except ValueError:
        return None
    return value if 0 <= value < math.inf else None


def _sum(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


class Window:
    """In how many seconds an advertised limit is counted, where nobody said.

    Both spellings leave it out. It is a minute unless two replies agree on an hour or a day: a limit that fills
    evenly needs ``used / limit`` of its window to be whole again, so ``reset`` tells the window. (OpenAI's free
    tier and others limit requests by the day.)

    Args:
        seconds: The window to begin with. Default 60.
        known: Whether it is certain, because the user said it.
    """

    __slots__ = ("_guess", "_known", "_used", "seconds")

    def __init__(self, seconds: float = 60.0, known: bool = False) -> None:
        self.seconds = seconds
        self._known = known
        self._guess: float | None = None
        self._used = 0.0

    def learn(self, said: Advertised) -> None:
        """Take in one reply."""
        if self._known or said.limit is None or said.remaining is None or not said.reset:
            return
        used = said.limit - said.remaining
        if used <= 0 or used == self._used:
            return
        implied = said.reset * said.limit / used
        guess = next((w for w in (3_600.0, 86_400.0) if abs(implied / w - 1) < 0.2), 60.0)
        if guess == self._guess:
            self.seconds = guess
        self._guess, self._used = guess, used
