"""How a limit stands at one moment: frozen values for displays and reports."""

from __future__ import annotations

from dataclasses import dataclass

from tournant.limits.figures import counted, per_unit


@dataclass(frozen=True, slots=True)
class BucketSnapshot:
    """One kind of limit, on requests or on tokens.

    Attributes:
        rate: How many pass in `seconds` now.
        goal: How many may pass in `seconds` at most, as configured or advertised; ``None`` where nobody said.
        seconds: The window in which both are counted: 60 for a limit per minute.
        level: How many may go at once now; below 0 after one that was larger than the bucket.
        why: Why the rate is what it is, in a few words.
    """

    rate: float
    goal: float | None
    seconds: float
    level: float
    why: str

    def __str__(self) -> str:
        now = per_unit(self.rate / self.seconds, self.seconds)
        if self.goal is None or self.rate >= self.goal:
            return f"{now} ({self.why})"
        return f"{now} of {counted(self.goal)} ({self.why})"


@dataclass(frozen=True, slots=True)
class LimitSnapshot:
    """A `RateLimit`, as everyone who names its key shares it.

    Attributes:
        key: The key, shortened so that it gives no credential away.
        requests: The limit on requests, or ``None`` while there is none.
        tokens: The limit on tokens, or ``None`` while there is none.
        frozen_for: Seconds until the first may pass again; 0 when not frozen.
        waiting: How many wait in line.
        in_flight: How many calls were let go and have not ended.
        throttled: How many calls the provider refused so far.
        asked: Whether the provider said how long to wait in the last freeze; otherwise it was a guess.
    """

    key: str
    requests: BucketSnapshot | None
    tokens: BucketSnapshot | None
    frozen_for: float
    waiting: int
    in_flight: int
    throttled: int
    asked: bool = False

    def __str__(self) -> str:
        kinds = (("requests", self.requests), ("tokens", self.tokens))
        parts = [f"{name} {kind}" for name, kind in kinds if kind is not None]
        text = ", ".join(parts) or "no limit known"
        if self.frozen_for > 0:
            why = "as the provider asked" if self.asked else "after a 429 that did not say how long"
            text += f", frozen for {self.frozen_for:.1f} s {why}"
        return text
