"""What the tests of stages with a limit share."""

from __future__ import annotations

from typing import Any

from tournant.limits import Adaptive, RateLimit


class Refused(Exception):
    status = 429

    def __init__(self, retry_after: float) -> None:
        super().__init__(f"come back in {retry_after} s")
        self.retry_after = retry_after


def held(*what: RateLimit | Adaptive) -> int:
    """How much is held or waited for."""
    total = 0
    for one in what:
        shown = one.snapshot()
        total += shown.waiting
        total += shown.in_flight if isinstance(one, RateLimit) else shown.running
    return total


async def same(item: Any) -> Any:
    return item
