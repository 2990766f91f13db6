"""`RateLimit`: the description of a provider's limits, and the reservations that are made on it.

The description is frozen and cheap; the state behind it is found by its key and lives as long as the process.
"""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from tournant.errors import short
from tournant.limits.clock import SYSTEM, Clock
from tournant.limits.figures import InvalidLimit, Rate, is_number, rate_from
from tournant.limits.headers import Headers, read_headers
from tournant.limits.shared import SharedLimit, Ticket
from tournant.limits.snapshot import LimitSnapshot
from tournant.limits.verdict import Predicate, find_throttle, is_async

_Figures = tuple[Rate | None, Rate | None, float | None, Clock]
_known: dict[str, tuple[_Figures, SharedLimit]] = {}
_known_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class RateLimit:
    """What a provider allows one credential: so many requests and so many tokens in so long.

    Everyone in the process who names the same key shares one state: buckets, freeze, and one line in which all wait, first
    come first served. ::

        limit = RateLimit(requests="500/min", tokens="200_000/min", key="openai")
        async with limit.reserve(tokens=1_200) as reserved:
            reply = await call()
            reserved.observe(reply.headers)
            reserved.settle(reply.usage.total_tokens)

    Never more passes in a window of ``w`` seconds than ``burst + rate * w``. A request that is larger than the bucket
    passes when the bucket is full, alone, and those behind it wait until its debt is paid. A 429 freezes
    the limit for everyone, once, for ``Retry-After``; then the rate is 0.7 of what it was, and recovers step by step
    towards the configured or advertised limit. Without figures nothing is held back until the first reply
    that advertises a limit or the first 429, and from then on the limit is found by the same steps.

    Attributes:
        requests: How many requests in how long: ``"500/min"``, ``"10/s"``, ``"100/10s"``, ``"2M/day"``, or a `Rate`.
            Default: to be discovered.
        tokens: How many tokens in how long. Default: to be discovered.
        key: Who shares the state. Best the credential's name, or the credential itself: messages and displays show
            no more than its first characters. Default ``None``: a state of its own.
        burst: How many requests (tokens, when only those are limited) may go at once after a pause; the other kind
            gets as many seconds' worth. Default: half a second's worth, because providers count in shorter slices than they
            advertise; what their headers say is left beyond that flows in over 20 seconds, unless a burst is given.
        is_throttle: Called with a call's exception, or with what is handed to `Reservation.check`: ``True`` or the
            seconds to wait for a throttle, ``False`` for none, ``None`` for the standard rule, which is status 429.
        clock: Where time comes from. Default: the machine's clock.

    A key that is in use already may be named without figures: that joins the limit as it is, figures, burst and clock. Named with
    figures, they have to be the same: as many in a window as long, however they are spelled. ``"60/min"`` and
    ``"1k/min"`` are what ``Rate(60, 60)`` and ``"1_000/60s"`` are; ``"1/s"`` is another limit than ``"60/min"``, because its window is.

    Raises:
        InvalidLimit: when a figure can't be, or when the key is already in use with other figures.
    """

    requests: Rate | str | None = None
    tokens: Rate | str | None = None
    key: str | None = field(default=None, repr=False)
    burst: float | None = None
    is_throttle: Predicate | None = None
    clock: Clock = field(default=SYSTEM, repr=False)
    _shared: SharedLimit = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Refuse what can't be, and find the state."""
        requests = rate_from(self.requests, "requests")
        tokens = rate_from(self.tokens, "tokens")
        object.__setattr__(self, "requests", requests)
        object.__setattr__(self, "tokens", tokens)
        if self.key is not None and (not isinstance(self.key, str) or not self.key):
            raise InvalidLimit(
                f"RateLimit(key=...) was given {type(self.key).__name__}: give a string that is not empty, or leave it out"
            )
        if self.is_throttle is not None and not callable(self.is_throttle):
            raise InvalidLimit(
                f"RateLimit(is_throttle={self.is_throttle!r}): give a function of a reply or exception"
            )
        if is_async(self.is_throttle):
            raise InvalidLimit(
                f"RateLimit(is_throttle={short(self.is_throttle)}): it is async, and a reply is judged on the spot; make it a plain def"
            )
        seconds = self._burst_seconds(requests or tokens)
        figures = (requests, tokens, seconds, self.clock)
        known, shared = _find(self.key, figures, self.label)
        object.__setattr__(self, "_shared", shared)
        if known != figures and requests is tokens is None:
            self._take_over(known)

    def _take_over(self, known: _Figures) -> None:
        """Have the figures of the limit that was joined, so that it is the same limit wherever this description goes."""
        requests, tokens, seconds, clock = known
        object.__setattr__(self, "requests", requests)
        object.__setattr__(self, "tokens", tokens)
        object.__setattr__(self, "clock", clock)
        first = requests or tokens
        if seconds is not None and first is not None:
            object.__setattr__(self, "burst", max(1.0, seconds * first.per_second))

    def _burst_seconds(self, first: Rate | None) -> float | None:
        if self.burst is None:
            return None
        if not is_number(self.burst) or not 1 <= self.burst < math.inf:
            raise InvalidLimit(
                f"RateLimit(burst={self.burst!r}): give how many may go at once, 1 or more, or leave it out"
            )
        if first is None:
            raise InvalidLimit(
                f"RateLimit(burst={self.burst!r}): a burst belongs to a figure; give requests= or tokens= too"
            )
        return self.burst / first.per_second

    @property
    def label(self) -> str:
        """The key as messages show it: its first characters and a digest; empty where there is no key."""
        if self.key is None:
            return ""
        shown = self.key[:3] if len(self.key) >= 8 else self.key[:1]
        digest = hashlib.blake2b(self.key.encode(errors="replace"), digest_size=3).hexdigest()
        return f"{shown}…#{digest}"

    def __reduce__(self) -> tuple[Callable[..., RateLimit], tuple[Any, ...]]:
        return RateLimit, (
            self.requests, self.tokens, self.key, self.burst, self.is_throttle, self.clock,
        )  # fmt: skip

    def reserve(self, tokens: float = 0) -> Reservation:
        """Return a reservation for one request, to be entered with ``async with``.

        Args:
            tokens: How many tokens the call will use, as an estimate: prompt and answer. Default 0.

        Raises:
            InvalidLimit: when `tokens` is no finite number, 0 or more.
        """
        return Reservation(self, tokens)

    def try_reserve(self, tokens: float = 0) -> Reservation | None:
        """Return a reservation that has passed, or ``None`` when it would have to wait. Never waits, needs no event loop.

        Whoever gets one must call its `Reservation.close` when the call has ended.
        """
        reservation = Reservation(self, tokens)
        reservation._used = True
        return reservation if self._shared.try_take(reservation) else None

    def throttled(self, retry_after: float | None = None, *, tokens: bool | None = None) -> None:
        """Say that the provider refused a call for coming too often.

        `Reservation.throttled` is better where there is one: it knows when the call left, and so whether the refusal belongs
        to a burst that was already answered.

        Args:
            retry_after: Seconds for which everyone is to wait. Default: 1, doubled each time in a row, at most 60.
            tokens: Whether the limit on tokens was hit, or (``False``) the one on requests. Default: whichever was
                used to more than 70 %.
        """
        self._shared.throttled(None, _seconds(retry_after), _kind(tokens))

    def observe(self, headers: Headers) -> None:
        """Take in what a reply's headers say: limits, what is left, and when it is whole again.

        ``Retry-After`` counts only with a 429; see `throttled`. What cannot be read counts as not said.

        Raises:
            InvalidLimit: when it is neither a mapping nor pairs.
        """
        self._shared.observe(read_headers(headers, self.clock.wall()), None)

    def check(self, outcome: object) -> bool:
        """Judge a reply or exception; when it is a throttle, act on it as `throttled` does. Return whether it is."""
        found = find_throttle(outcome, self.is_throttle, self.clock.wall())
        if found is not None:
            self._shared.throttled(None, found.retry_after, found.of)
        return found is not None

    def snapshot(self) -> LimitSnapshot:
        """Return the current rates, why they are so, how long it is frozen still, and who waits."""
        return self._shared.snapshot(self.label)


class Reservation(Ticket):
    """One call's reservation: wait for it, make the call, settle it.

    ``async with`` waits on entering. On leaving, an exception is judged by the limit's predicate (a 429 freezes and steps
    down by itself). What was charged stays charged unless settled: the provider counted the call, even if it failed
    or was cancelled midway. Cancelled while it waits, it has taken nothing.

    Attributes:
        charged: Tokens that it is charged with now: the estimate, then what was settled.
        granted_at: When it passed, on the limit's clock.
    """

    __slots__ = ("_limit", "_spent", "_used")

    def __init__(self, limit: RateLimit, tokens: float) -> None:
        super().__init__(_tokens(tokens, "reserve"))
        self._limit = limit
        self._spent = 0.0
        self._used = False

    def belongs_to(self, limit: RateLimit) -> bool:
        """Tell whether `limit` counts this call, be it by the same key."""
        return self._limit._shared is limit._shared

    async def __aenter__(self) -> Reservation:
        if self._used:
            raise InvalidLimit("a reservation is for one call: ask limit.reserve(...) for another")
        self._used = True
        await self._limit._shared.take(self)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close(error)

    def close(self, error: BaseException | None = None) -> None:
        """End the call; `error` is what it raised. Only who did not use ``async with`` calls this. Twice is once."""
        try:
            if self.held and not self.refused and isinstance(error, Exception):
                self.check(error)
        finally:
            self._limit._shared.close(self, passed=error is None)

    def settle(self, tokens: float) -> None:
        """Charge what the call really used in place of the estimate: the difference is given back, or owed.

        It may be called more than once, and after the call has ended; the last figure holds.

        Raises:
            InvalidLimit: when `tokens` is no finite number, 0 or more.
        """
        self._limit._shared.settle(self, _tokens(tokens, "settle"))

    def spend(self, tokens: float) -> None:
        """Charge what one of several requests used, for a call that makes more than one: figures add up.

        The first takes the place of the estimate.

        Raises:
            InvalidLimit: when `tokens` is no finite number, 0 or more.
        """
        self._spent += _tokens(tokens, "spend")
        self._limit._shared.settle(self, self._spent)

    @property
    def spent(self) -> float:
        """Tokens that `spend` has added up."""
        return self._spent

    def release(self) -> None:
        """Give everything back, because the call never left (a cache answered, the connection was refused)."""
        self._limit._shared.release(self)

    def throttled(self, retry_after: float | None = None, *, tokens: bool | None = None) -> None:
        """Say that the provider refused this call; see `RateLimit.throttled`. Its tokens are given back."""
        self._limit._shared.throttled(self, _seconds(retry_after), _kind(tokens))

    def observe(self, headers: Headers) -> None:
        """Take in the headers of this call's reply; see `RateLimit.observe`."""
        limit = self._limit
        limit._shared.observe(read_headers(headers, limit.clock.wall()), self)

    def check(self, outcome: object) -> bool:
        """Judge this call's reply or exception; a throttle is acted upon. Return whether it is one.

        For providers that answer 200 with an error in the body: hand the parsed body to it.
        """
        limit = self._limit
        found = find_throttle(outcome, limit.is_throttle, limit.clock.wall())
        if found is not None:
            limit._shared.throttled(self, _seconds(found.retry_after), found.of)
        return found is not None


def forget(key: str) -> None:
    """Forget what was learned for `key`, so that it can be named with other figures. Who waits there goes on waiting there."""
    with _known_lock:
        _known.pop(key, None)


def _find(key: str | None, figures: _Figures, label: str) -> tuple[_Figures, SharedLimit]:
    if key is None:
        return figures, SharedLimit(*figures)
    with _known_lock:
        if key not in _known:
            _known[key] = (figures, SharedLimit(*figures))
        known, shared = _known[key]
    if figures[:3] == (None, None, None) and figures[3] in (known[3], SYSTEM):
        return known, shared
    if not _same(known, figures):
        raise InvalidLimit(
            f"RateLimit(key={label}) is already in use with {_told(known)}, and can't have {_told(figures)} as well: "
            "everyone who names a key shares one limit. Give the same figures in the same windows, or none once it is in use, "
            "share the one RateLimit, or choose another key"
        )
    return known, shared


def _same(known: _Figures, figures: _Figures) -> bool:
    """Tell whether two descriptions mean the same, so that ``1.1M`` and ``1_100_000`` do."""
    return known[3] == figures[3] and all(
        one == other if one is None or other is None else math.isclose(one, other, rel_tol=1e-9)
        for one, other in zip(_numbers(known), _numbers(figures), strict=True)
    )


def _numbers(figures: _Figures) -> list[float | None]:
    numbers: list[float | None] = [figures[2]]
    for rate in figures[:2]:
        numbers += [None, None] if rate is None else [rate.amount, rate.seconds]
    return numbers


def _told(figures: _Figures) -> str:
    requests, tokens, burst, clock = figures
    parts = [f"requests={requests}" if requests else "", f"tokens={tokens}" if tokens else ""]
    parts.append(f"burst={burst:g} seconds' worth" if burst is not None else "")
    parts.append(f"clock={clock!r}" if clock is not SYSTEM else "")
    return ", ".join(part for part in parts if part) or "no figures"


def _tokens(tokens: float, where: str) -> float:
    if not is_number(tokens) or not 0 <= tokens < math.inf:
        raise InvalidLimit(f"{where}({tokens!r}): give a number of tokens, 0 or more")
    return float(tokens)


def _seconds(retry_after: float | None) -> float | None:
    if retry_after is not None and (not is_number(retry_after) or not 0 <= retry_after < math.inf):
        raise InvalidLimit(f"throttled({retry_after!r}): give seconds, 0 or more, or leave it out")
    return retry_after


def _kind(tokens: bool | None) -> str | None:
    return None if tokens is None else "tokens" if tokens else "requests"
