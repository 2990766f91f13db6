"""Was this a throttle? One rule for replies and exceptions of any HTTP client, and the user's own.

The rule knows clients by what they have in common (a ``status`` or ``status_code``, a ``response``, ``headers``), so it
imports none of them.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any

from tournant.errors import note, short
from tournant.limits.figures import InvalidLimit
from tournant.limits.headers import LONGEST_WAIT, Headers, read_headers

Predicate = Callable[[Any], bool | float | None]
"""Says whether a reply or an exception is a throttle: ``True``, ``False``, the seconds to wait, or ``None`` for "the standard rule"."""

TOO_MANY = frozenset({429})
OVERLOADED = frozenset({503, 529})


@dataclass(frozen=True, slots=True)
class Throttle:
    """A call was refused for coming too often.

    Attributes:
        retry_after: Seconds to wait as the provider says, or ``None`` where it does not.
        of: Which limit was hit, ``"requests"`` or ``"tokens"``, as an attribute ``of`` says; ``None`` where nothing does.
    """

    retry_after: float | None = None
    of: str | None = None


def find_throttle(outcome: object, predicate: Predicate | None, wall: float) -> Throttle | None:
    """Return the throttle that `outcome` is, or ``None``.

    Args:
        outcome: What a call gave: a reply, parsed or not, or an exception.
        predicate: The user's rule, asked first.
        wall: Seconds since 1970, to measure a date in ``Retry-After`` against.

    Raises:
        InvalidLimit: when the user's rule says what is no verdict.
    """
    if predicate is not None:
        try:
            verdict = predicate(outcome)
        except Exception as error:
            note(
                error,
                "raised by the predicate RateLimit(is_throttle=...), which has to bear results and exceptions",
            )
            raise
        if verdict is False:
            return None
        if verdict is not None and verdict is not True:
            return Throttle(_stated(verdict))
        if verdict is True:
            return Throttle(retry_after_of(outcome, wall))
    if status_of(outcome) in TOO_MANY and getattr(outcome, "transient", True) is not False:
        of = getattr(outcome, "of", None)
        return Throttle(retry_after_of(outcome, wall), of if of in ("requests", "tokens") else None)
    return None


def is_async(predicate: object) -> bool:
    """Tell whether calling `predicate` gives a coroutine."""
    call = getattr(predicate, "__call__", None)  # noqa: B004
    return inspect.iscoroutinefunction(predicate) or inspect.iscoroutinefunction(call)


def _stated(verdict: object) -> float:
    """Return the seconds that the user's rule named, at most a day, or refuse what is no verdict."""
    if isinstance(verdict, Real) and not math.isnan(verdict):
        return min(max(0.0, float(verdict)), LONGEST_WAIT)
    if inspect.iscoroutine(verdict):
        verdict.close()
    raise InvalidLimit(
        f"RateLimit(is_throttle=...): the function returned {short(verdict)}; return True or the seconds to wait for a throttle, "
        "False for none, None for the standard rule"
    )


def status_of(outcome: object) -> int | None:
    """Return the HTTP status of a reply or exception, or ``None`` if it has none."""
    for holder in (outcome, getattr(outcome, "response", None)):
        for name in ("status_code", "status"):
            status = getattr(holder, name, None)
            if isinstance(status, int):
                return int(status)
    return None


def headers_of(outcome: object) -> Headers | None:
    """Return the headers of a reply or exception, or ``None`` if it has none."""
    for holder in (outcome, getattr(outcome, "response", None)):
        headers = getattr(holder, "headers", None)
        if headers is not None and hasattr(headers, "items"):
            return headers  # type: ignore[no-any-return]
    return None


def retry_after_of(outcome: object, wall: float) -> float | None:
    """Return the seconds after which to come back, from an attribute ``retry_after`` or from headers, or ``None``; at most a day.

    Args:
        outcome: A reply or an exception.
        wall: Seconds since 1970, to measure a date in ``Retry-After`` against.
    """
    stated = getattr(outcome, "retry_after", None)
    if isinstance(stated, (int, float)) and not isinstance(stated, bool) and 0 <= stated < math.inf:
        return min(float(stated), LONGEST_WAIT)
    headers = headers_of(outcome)
    return None if headers is None else read_headers(headers, wall).retry_after
