"""A provider with limits, in virtual time: what the control loops are measured against."""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
from dataclasses import dataclass, field
from itertools import pairwise

from tournant.limits import Adaptive, RateLimit, VirtualClock, admit


class Refused(Exception):
    def __init__(self, status: int, headers: dict[str, str]) -> None:
        super().__init__(f"status {status}")
        self.status_code = status
        self.headers = headers


@dataclass
class Provider:
    """Token buckets for requests and tokens, latency with a knee, errors, hangs."""

    clock: VirtualClock
    requests: float  # per second
    tokens: float = math.inf  # per second
    capacity: float = 1.0  # seconds' worth in each bucket
    changes: list[tuple[float, float]] = field(default_factory=list)  # (when, factor)
    advertises: bool = True
    whole_seconds: bool = True  # Retry-After
    knee: int = 64
    latency: float = 0.5
    errors: float = 0.01
    hangs: float = 0.002
    seed: int = 1
    accepted: int = 0
    accepted_tokens: float = 0.0
    refused: int = 0
    running: int = 0
    peak: int = 0

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.levels = [self.requests * self.capacity, self.tokens * self.capacity]
        self.stamp = self.clock.now()

    def factor(self, now: float) -> float:
        factor = 1.0
        for when, value in self.changes:
            if now >= when:
                factor = value
        return factor

    def allowed(self, end: float) -> float:
        """How many requests it would have let pass by `end`."""
        total, edges = self.requests * self.capacity, [0.0, *(w for w, _ in self.changes), end]
        for a, b in pairwise(edges):
            if b > a:
                total += self.requests * self.factor(a) * (min(b, end) - a)
        return total

    def _refill(self) -> None:
        now = self.clock.now()
        factor = self.factor(now)
        for index, rate in enumerate((self.requests * factor, self.tokens * factor)):
            level = self.levels[index] + rate * (now - self.stamp)
            self.levels[index] = min(rate * self.capacity, level)
        self.stamp = now

    def headers(self) -> dict[str, str]:
        self._refill()
        found: dict[str, str] = {}
        if not self.advertises:
            return found
        factor = self.factor(self.clock.now())
        for index, (name, rate) in enumerate(
            (("requests", self.requests), ("tokens", self.tokens))
        ):
            if rate < math.inf:
                rate *= factor
                found[f"x-ratelimit-limit-{name}"] = f"{rate * 60:.0f}"
                found[f"x-ratelimit-remaining-{name}"] = f"{max(0, math.floor(self.levels[index]))}"
                gap = (rate * self.capacity - self.levels[index]) / rate
                found[f"x-ratelimit-reset-{name}"] = f"{gap * 1000:.0f}ms"
        return found

    async def call(self, tokens: float) -> dict[str, str]:
        """Answer a request with headers, or raise."""
        await asyncio.sleep(0.01 + 0.02 * self.rng.random())
        self._refill()
        rate = self.requests * self.factor(self.clock.now())
        costs = (1.0, tokens if self.tokens < math.inf else 0.0)
        if any(level < cost for level, cost in zip(self.levels, costs, strict=True)):
            self.refused += 1
            headers = self.headers()
            wait = max((1.0 - self.levels[0]) / rate, 0.0)
            if self.tokens < math.inf:
                wait = max(wait, (tokens - self.levels[1]) / self.tokens)
            headers["retry-after"] = f"{math.ceil(wait)}" if self.whole_seconds else f"{wait:.3f}"
            await asyncio.sleep(0.01)
            raise Refused(429, headers)
        for index, cost in enumerate(costs):
            self.levels[index] -= cost
        self.accepted += 1
        self.accepted_tokens += tokens
        self.running += 1
        self.peak = max(self.peak, self.running)
        try:
            if self.rng.random() < self.hangs:
                await asyncio.sleep(3600)
            crowd = max(1.0, self.running / self.knee)
            await asyncio.sleep(self.latency * crowd * self.rng.lognormvariate(-0.05, 0.3))
            if self.rng.random() < self.errors:
                raise Refused(500, self.headers())
            return self.headers()
        finally:
            self.running -= 1


@dataclass
class Outcome:
    goodput: float
    refused: float
    calls: int
    peak: int
    concurrency: int
    text: str


def drive(
    clock: VirtualClock,
    provider: Provider,
    limit: RateLimit,
    adaptive: Adaptive,
    seconds: float,
    workers: int = 64,
    tokens: tuple[float, float] = (0.0, 0.0),
    trace: bool = False,
) -> Outcome:
    """Send as much as the limits let through for `seconds`, and compare with what the provider would have allowed."""
    rng = random.Random(provider.seed + 1)

    async def work() -> None:
        while True:
            actual = rng.uniform(*tokens)
            estimate = actual * rng.uniform(0.9, 1.4)
            with contextlib.suppress(Refused, TimeoutError):
                async with admit(limit, adaptive, estimate) as call:
                    try:
                        async with asyncio.timeout(5):
                            headers = await provider.call(actual)
                    except Refused as error:
                        call.observe(error.headers)
                        raise
                    call.observe(headers)
                    call.settle(actual)

    async def main() -> None:
        tasks = [asyncio.ensure_future(work()) for _ in range(workers)]
        if trace:
            for t in range(int(seconds)):
                await asyncio.sleep(1)
                print(
                    t + 1,
                    provider.accepted,
                    provider.refused,
                    provider.running,
                    adaptive.snapshot(),
                    limit.snapshot(),
                )
        else:
            await asyncio.sleep(seconds)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    clock.run(main())
    calls = provider.accepted + provider.refused
    return Outcome(
        provider.accepted / provider.allowed(seconds),
        provider.refused / calls,
        calls,
        provider.peak,
        adaptive.limit,
        str(limit.snapshot()),
    )
