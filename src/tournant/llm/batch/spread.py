"""A batch on a cluster: nodes ask, the driver writes the results.

Each node has a client and an eye on the provider's health of its own; the rate is one for all (`tournant.cluster.leases`). What a
node has to say of a request, its line included, comes back as one value, and counts when the driver has written it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, NamedTuple

from tournant.llm.batch.asking import Asker
from tournant.llm.batch.health import Health
from tournant.llm.batch.outcome import Tally
from tournant.llm.batch.requests import Request
from tournant.llm.client import Client
from tournant.llm.errors import LLMError, LLMTimeout
from tournant.llm.model import Usage

#: Seconds that calls which are under way get when a node gives up; their answers are paid for.
_GRACE = 10.0
#: So much later than silence can have lasted too long is it looked at, so that it is looked at once.
_SLACK = 0.01


class Told(NamedTuple):
    """What became of one request on a node.

    Attributes:
        line: for the results; ``None`` when it was not asked, because the batch is given up.
        attempts: calls that the node made since it told something last.
        usage: of an answer.
        failed: of a failure for good its kind, the request's id and what happened.
        given_up: why the batch is to be given up.
        down_for: seconds for which the provider could not be reached then.
        answered: the provider has answered this node as it should, once at least.
    """

    line: bytes | None
    attempts: int
    usage: Usage | None = None
    failed: tuple[str, str, str] | None = None
    given_up: LLMError | None = None
    down_for: float = 0.0
    answered: bool = False


class _NodeTally(Tally):
    """Counts on a node, and remembers what it was told last: that is of the request whose line comes next."""

    def __init__(self) -> None:
        super().__init__(None)
        self.usage: Usage | None = None
        self.failure_told: tuple[str, str, str] | None = None

    def answer(self, usage: Usage | None) -> None:
        """Remember an answer's usage."""
        self.usage, self.failure_told = usage, None

    def failure(self, kind: str, custom_id: str, message: str) -> None:
        """Remember a failure for good."""
        self.usage, self.failure_told = None, (kind, custom_id, message)


class NodeAsker:
    """The stage of a batch that asks, on a node. It travels as a description, and begins with its first request there.

    Args:
        client: sends the requests.
        retries: how often a request is sent again after a failure that may pass.
        patience: see `Health`.
        timeout: seconds that one call may take.
    """

    def __init__(self, client: Client, retries: int, patience: float, timeout: float) -> None:
        self._given = client, retries, patience, timeout
        self._node: _Node | None = None

    def __reduce__(self) -> tuple[Callable[..., NodeAsker], tuple[Any, ...]]:
        return NodeAsker, self._given

    async def __call__(self, request: Request) -> Told:
        """Send a request, and tell what became of it.

        Raises:
            LLMError: it is to be tried again.
        """
        if self._node is None:
            self._node = _Node(*self._given)
        return await self._node.ask(request)


class _Node:
    """A node at work."""

    def __init__(self, client: Client, retries: int, patience: float, timeout: float) -> None:
        self.health = Health(patience, timeout=timeout)
        self.tally = _NodeTally()
        self.error: LLMError | None = None
        self._told = 0
        self._expired = False
        self._calls: set[asyncio.Timeout] = set()
        self._asker = Asker(
            client, retries, self.health, self.tally, self._tell, self.give_up, lambda: None
        )
        self._watching = False

    async def ask(self, request: Request) -> Told:
        self._watch_silence()
        timeout = asyncio.timeout(0 if self._expired else None)
        told: Told | None = None
        try:
            async with timeout:
                self._calls.add(timeout)
                told = await self._asker.ask(request)
        except TimeoutError:
            if not timeout.expired():
                raise
        finally:
            self._calls.discard(timeout)
        return told if told is not None else self._tell(None)

    def _tell(self, line: bytes | None) -> Told:
        tally = self.tally
        attempts, self._told = tally.attempts - self._told, tally.attempts
        usage, failed = (None, None) if line is None else (tally.usage, tally.failure_told)
        health = self.health
        return Told(line, attempts, usage, failed, self.error, health.down_for(), health.answered)

    def give_up(self, error: LLMError) -> None:
        """Send nothing more; let what is under way end, but not for long."""
        if self.error is None:
            self.error = error
            self.health.stop()
            asyncio.get_running_loop().call_later(_GRACE, self._expire)

    def _expire(self) -> None:
        self._expired = True
        now = asyncio.get_running_loop().time()
        for call in self._calls:
            if not call.expired():
                call.reschedule(now)

    def _watch_silence(self) -> None:
        """Give up when nothing at all comes back for too long; look again when that may be so."""
        if self._watching or self.health.stopped:
            return
        left = self.health.silence_left()
        if left > 0:
            self._watching = True
            asyncio.get_running_loop().call_later(left + _SLACK, self._look)
            return
        self.give_up(silent(self.health))
        self._expire()

    def _look(self) -> None:
        self._watching = False
        if self._calls:
            self._watch_silence()


def silent(health: Health) -> LLMTimeout:
    """Return what it is called when a provider takes requests and answers none."""
    return LLMTimeout(
        f"the provider took requests and answered none of them for {health.silent_for():,.0f} s; check that it "
        "is well and that base_url is the API's address, or allow more with timeout and patience"
    )
