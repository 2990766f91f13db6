"""How one call and the limits it runs under inform each other.

A call may run under a limit of its client, which is admitted here, and under that of the stage it is made in, which the
engine has admitted already. Both are told what the call used, what the provider's headers say, and when it never left.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any

from tournant.limits import Adaptive, Admission, RateLimit, admit, current
from tournant.llm.errors import ConnectionFailed, LLMError, LLMTimeout, RateLimited
from tournant.llm.estimate import estimate_tokens
from tournant.llm.model import Usage


class Account:
    """The limits of one call: ``async with`` waits for the client's own, and ends it with the call.

    Args:
        limit: The client's rate, or ``None``.
        concurrency: The client's concurrency, or ``None``.
        body: The request's body, to estimate its tokens.
    """

    __slots__ = ("_charged", "_own", "_stage")

    def __init__(
        self, limit: RateLimit | None, concurrency: Adaptive | None, body: Mapping[str, Any]
    ) -> None:
        self._charged = 0.0
        self._stage = current()
        self._own: Admission | None = None
        if limit is not None and self._stage is not None and _counts_in(self._stage, limit):
            limit = None  # the stage has counted this call in it already
        if limit is not None or concurrency is not None:
            tokens = 0 if limit is None else estimate_tokens(body)
            self._own = admit(limit, concurrency, tokens)

    @property
    def waits(self) -> bool:
        """Whether the client has a limit of its own to wait for."""
        return self._own is not None

    @property
    def counted(self) -> bool:
        """Whether a limit wants to know what the call uses."""
        return (self._stage is not None and self._stage.reservation is not None) or (
            self._own is not None
        )

    async def __aenter__(self) -> Account:
        if self._own is not None:
            await self._own.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        own, self._own = self._own, None
        if own is not None:
            await own.__aexit__(kind, error, trace)

    def abandon(self) -> None:
        """End it without an event loop, for a stream that nobody closed: nothing is learned from it."""
        own, self._own = self._own, None
        if own is not None:
            own.close(GeneratorExit())

    def excuse(self, seconds: float) -> None:
        """Leave the time that a stream's reader took out of the call's latency."""
        if self._own is not None:
            self._own.excuse(seconds)

    def answered(self, headers: Mapping[str, str], body: Any) -> bool:
        """Take in a reply's headers and judge its body; return whether a limit calls it a throttle."""
        throttle = False
        for admission in self._all():
            admission.observe(headers)
            throttle = (body is not None and admission.check(body)) or throttle
        return throttle

    def used(self, usage: Usage | None) -> None:
        """Charge what the call cost; where nobody says, the estimate stands."""
        if usage is not None:
            self.charge(usage.total_tokens)

    def charge(self, tokens: float) -> None:
        """Charge this many tokens in all; a stream may say several times how many it is by then."""
        more = max(0.0, tokens - self._charged)
        self._charged += more
        for admission in self._all():
            admission.spend(more)

    def failed(self, error: LLMError, headers: Mapping[str, str] | None = None) -> None:
        """Take in that the call failed. A throttle is judged where the error passes through the limit."""
        never_left = (isinstance(error, ConnectionFailed) and not error.sent) or (
            isinstance(error, LLMTimeout) and error.which == "connect"
        )
        refused = error.status is not None and 400 <= error.status < 500
        for admission in self._all():
            if headers is not None:
                admission.observe(headers)
            reservation = admission.reservation
            if reservation is None:
                continue
            if never_left and not reservation.spent:
                reservation.release()
            elif never_left or (refused and not isinstance(error, RateLimited)):
                admission.spend(0)  # a request that never left or is refused costs no tokens

    def _all(self) -> list[Admission]:
        both = [self._own, self._stage]
        return [one for one in both if one is not None and one.reservation is not None]


def _counts_in(admission: Admission, limit: RateLimit) -> bool:
    reservation = admission.reservation
    return reservation is not None and reservation.belongs_to(limit)
