"""The provider's limits: a bucket for requests, one for tokens, and what it tells its callers about them.

It shares nothing with the limits that callers keep (`tournant.limits`), so that neither can hide the other's mistakes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from tournant.llm.mock.settings import MockSettings

_GRAIN = 1e-9


class Bucket:
    """A token bucket (Turner, 1986): fills evenly, holds a burst, and what is larger than it passes when it is full.

    In any window of ``w`` seconds no more passes than ``capacity + rate * w``, plus what a single request has
    beyond the capacity.

    Args:
        limit: How much passes in a minute.
        burst: How many seconds' worth it holds, at least 1.
        now: Seconds on the caller's clock. It begins full.
    """

    __slots__ = ("_stamp", "capacity", "level", "limit", "rate")

    def __init__(self, limit: float, burst: float, now: float) -> None:
        self._stamp = now
        self.limit, self.rate, self.capacity = limit, limit / 60, 1.0
        self._resize(burst)
        self.level = self.capacity

    def _resize(self, burst: float) -> None:
        self.capacity = max(1.0, self.rate * burst)

    def change(self, limit: float, burst: float, now: float) -> None:
        """Follow another limit from now on; what was saved up stays, as far as there is room for it."""
        self.refill(now)
        self.limit, self.rate = limit, limit / 60
        self._resize(burst)
        self.level = min(self.level, self.capacity)

    def refill(self, now: float) -> None:
        """Let in what has come since the last time."""
        if now > self._stamp:
            self.level = min(self.capacity, self.level + (now - self._stamp) * self.rate)
            self._stamp = now

    def wait(self, cost: float) -> float:
        """Return the seconds until `cost` passes, 0 for now; as of the last `refill`."""
        lacking = min(cost, self.capacity) - self.level
        return lacking / self.rate if lacking > _GRAIN * max(1.0, cost) else 0.0

    @property
    def whole_in(self) -> float:
        """Seconds until it is full."""
        return max(0.0, self.capacity - self.level) / self.rate


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request does not pass.

    Attributes:
        kind: ``"requests"`` or ``"tokens"``: the limit that it would break.
        wait: Seconds until it would pass; infinite when it is larger than a whole minute's limit.
        limit: The limit, a minute.
        used: How much of the bucket is used.
        asked: How much it asked for.
    """

    kind: str
    wait: float
    limit: float
    used: float
    asked: float


class Limits:
    """What one account may send. No clock of its own: callers say what time it is, in seconds."""

    def __init__(self, settings: MockSettings, now: float) -> None:
        self._requests: Bucket | None = None
        self._tokens: Bucket | None = None
        self._style = settings.headers
        self.change(settings, now)

    def change(self, settings: MockSettings, now: float) -> None:
        """Follow these settings from now on."""
        self._style = settings.headers
        self._requests = _changed(self._requests, settings.rpm, settings.burst, now)
        self._tokens = _changed(self._tokens, settings.tpm, settings.burst, now)

    def refill(self) -> None:
        """Forget what was used."""
        for bucket in (self._requests, self._tokens):
            if bucket is not None:
                bucket.level = bucket.capacity

    @property
    def burst(self) -> dict[str, float | None]:
        """How many requests and tokens pass at once after a pause; ``None`` for no limit."""
        requests, tokens = self._requests, self._tokens
        return {
            "requests": None if requests is None else requests.capacity,
            "tokens": None if tokens is None else tokens.capacity,
        }

    def admit(self, tokens: float, now: float) -> Refusal | None:
        """Let one request of so many tokens pass and count it, or say why not and count nothing."""
        slowest: Refusal | None = None
        for kind, bucket, cost in (
            ("requests", self._requests, 1.0),
            ("tokens", self._tokens, tokens),
        ):
            if bucket is None:
                continue
            bucket.refill(now)
            wait = math.inf if cost > max(bucket.limit, bucket.capacity) else bucket.wait(cost)
            if wait and (slowest is None or wait > slowest.wait):
                used = max(0.0, bucket.capacity - bucket.level)
                slowest = Refusal(kind, wait, bucket.limit, used, cost)
        if slowest is None:
            if self._requests is not None:
                self._requests.level -= 1
            if self._tokens is not None:
                self._tokens.level -= tokens
        return slowest

    def settle(self, estimated: float, used: float, now: float) -> None:
        """Put right what `admit` counted, when the answer's true length is known."""
        if self._tokens is not None:
            self._tokens.refill(now)
            self._tokens.level = min(self._tokens.capacity, self._tokens.level + estimated - used)

    def headers(self, refusal: Refusal | None = None) -> bytes:
        """Return the header lines of a reply, as of the last `admit`.

        Args:
            refusal: Why the reply is a 429, where it is one.
        """
        if self._style == "none":
            return b""
        lines: list[str] = []
        for kind, bucket in (("requests", self._requests), ("tokens", self._tokens)):
            if bucket is None:
                continue
            left = max(0, math.floor(bucket.level + _GRAIN))
            if self._style == "openai":
                lines.append(
                    f"x-ratelimit-limit-{kind}: {bucket.limit:.0f}\r\nx-ratelimit-remaining-{kind}: {left}\r\n"
                    f"x-ratelimit-reset-{kind}: {duration(bucket.whole_in)}\r\n"
                )
            else:
                whole = datetime.now(UTC) + timedelta(seconds=bucket.whole_in)
                stem = f"anthropic-ratelimit-{kind}"
                lines.append(
                    f"{stem}-limit: {bucket.limit:.0f}\r\n{stem}-remaining: {left}\r\n"
                    f"{stem}-reset: {whole:%Y-%m-%dT%H:%M:%SZ}\r\n"
                )
        if refusal is not None and refusal.wait < math.inf:
            # Whole seconds, as both providers give them; only OpenAI also tells the milliseconds.
            lines.append(f"retry-after: {math.ceil(refusal.wait)}\r\n")
            if self._style == "openai":
                lines.append(f"retry-after-ms: {math.ceil(refusal.wait * 1_000)}\r\n")
        return "".join(lines).encode()


def _changed(bucket: Bucket | None, limit: float | None, burst: float, now: float) -> Bucket | None:
    if limit is None:
        return None
    if bucket is None:
        return Bucket(limit, burst, now)
    bucket.change(limit, burst, now)
    return bucket


def duration(seconds: float) -> str:
    """Write seconds as OpenAI does: ``20ms``, ``1.5s``, ``6m0s``, ``2h0m30s``."""
    milliseconds = math.ceil(seconds * 1_000 - _GRAIN)
    if milliseconds < 1_000:
        return f"{max(0, milliseconds)}ms"
    minutes, rest = divmod(milliseconds, 60_000)
    tail = f"{rest / 1_000:g}s"
    if not minutes:
        return tail
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes}m{tail}" if hours else f"{minutes}m{tail}"
