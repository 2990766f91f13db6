"""Answering with server-sent events: the response, and the pump between a producer that calls and a client that reads.

The first piece goes out at once; after that, pieces wait for each other only while the loop has too much to do, and at most
`coalesce_seconds`: a producer that is faster than that is not read from meanwhile, which saves reads as well as writes. What waits for one client is bounded in bytes: above it the producer is paused. How long a client may
read nothing is the connection's business (`tournant.serve.connections`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

from tournant.serve.bodies import Send
from tournant.serve.errors import HTTPError, error_event
from tournant.serve.ticker import Ticker

STREAM_HEADERS: tuple[tuple[bytes, bytes], ...] = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
    (b"x-content-type-options", b"nosniff"),
)
DONE = b"data: [DONE]\n\n"


class ChunkWriter(Protocol):
    """What a connection offers beside ASGI: a piece of a response's body written in the very call, without a coroutine."""

    blocked: bool

    def write_chunk(self, data: bytes) -> None:
        """Write a piece of a chunked body. Only once the response has started, and while the connection is not blocked."""


class EventResponse:
    """A response of server-sent events.

    Args:
        send: The request's ``send``.
        headers: More headers.
        direct: The connection, where it can be written to directly.

    Attributes:
        started: Whether the status has been sent: before that, an error can still be one.
        ended: Whether the end has been sent.
    """

    __slots__ = ("_headers", "_send", "direct", "ended", "started")

    def __init__(
        self,
        send: Send,
        headers: Sequence[tuple[bytes, bytes]] = (),
        direct: ChunkWriter | None = None,
    ) -> None:
        self._send = send
        self.direct = direct
        self._headers = headers
        self.started = False
        self.ended = False

    async def write(self, data: bytes, *, last: bool = False) -> None:
        """Send whole events; `last` ends the response. It waits while the client's buffer is full."""
        if not self.started:
            self.started = True
            headers = [*STREAM_HEADERS, *self._headers]
            await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        self.ended = last
        await self._send({"type": "http.response.body", "body": data, "more_body": not last})

    async def end(self) -> None:
        """End the response."""
        if not self.ended:
            await self.write(b"", last=True)

    async def fail(self, error: HTTPError) -> None:
        """End the response with an error event.

        Raises:
            HTTPError: `error` itself when nothing has been sent yet, so that it becomes a status.
        """
        if not self.started:
            raise error
        if not self.ended:
            await self.write(error_event(error), last=True)


class Pump:
    """Takes events from a producer's callbacks and writes them to a response.

    Args:
        response: Where they go.
        ticker: Knows whether the loop is late.
        most: How many bytes may wait; above it the producer is paused.
        coalesce: How long pieces may wait for each other, in seconds.
        pause: Pauses the producer.
        resume: Lets the producer go on.

    Attributes:
        writes: How many times it wrote.
        sent: How many bytes it wrote.
    """

    __slots__ = (
        "_coalesce", "_direct", "_error", "_full", "_loop", "_most", "_over", "_pause", "_pending", "_response", "_resting", "_resume",
        "_size", "_ticker", "_waiter", "_wrote_at", "sent", "writes",
    )  # fmt: skip

    def __init__(
        self,
        response: EventResponse,
        ticker: Ticker,
        most: int,
        coalesce: float,
        pause: Callable[[], None],
        resume: Callable[[], None],
    ) -> None:
        self._response = response
        self._direct = response.direct
        self._wrote_at = 0.0
        self._ticker = ticker
        self._most = most
        self._coalesce = coalesce
        self._pause = pause
        self._resume = resume
        self._loop = ticker.loop
        self._pending: list[bytes] = []
        self._size = 0
        self._full = False
        self._resting = False
        self._over = False
        self._error: HTTPError | None = None
        self._waiter: asyncio.Future[None] | None = None
        self.writes = 0
        self.sent = 0

    @property
    def blocked(self) -> bool:
        """Whether the producer is paused because the client reads slowly."""
        return self._full

    def feed(self, data: bytes) -> None:
        """Take whole events."""
        waiter = self._waiter
        direct = self._direct
        # Everything before has been written and nothing hinders: no need to wake anybody.
        if (
            waiter is not None
            and direct is not None
            and self.writes
            and not self._pending
            and not direct.blocked
        ):
            direct.write_chunk(data)
            self.writes += 1
            self.sent += len(data)
            if self._ticker.loaded:
                self._rest()
            return
        self._pending.append(data)
        self._size += len(data)
        if self._size > self._most and not self._full:
            self._full = True
            self._pause()
        if waiter is not None:
            self._waiter = None
            if not waiter.done():
                waiter.set_result(None)

    def end(self, error: HTTPError | None = None, last: bytes = b"") -> None:
        """Take in that nothing more comes.

        Args:
            error: Why the answer is not complete, if it is not.
            last: The last events.
        """
        if self._over:
            return
        self._over = True
        self._error = error
        if last:
            self._pending.append(last)
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    async def run(self) -> None:
        """Write until the producer has ended.

        Raises:
            HTTPError: the producer failed before anything was written.
        """
        response = self._response
        pending = self._pending
        while True:
            if not pending:
                if self._over:
                    break
                self._waiter = waiter = self._loop.create_future()
                await waiter
                continue
            data = pending[0] if len(pending) == 1 else b"".join(pending)
            pending.clear()
            self._size = 0
            if self._full:
                self._full = False
                if not self._resting:
                    self._resume()
            self.writes += 1
            self.sent += len(data)
            last = self._over and self._error is None
            await response.write(data, last=last)
            if last:
                return
            if self._ticker.loaded and not self._over:
                self._rest()
        if self._error is not None:
            await response.fail(self._error)
        else:
            await response.end()

    def let_go(self) -> None:
        """Forget the producer: the two know each other, and would outlive the answer until the garbage collection."""
        self._pause = self._resume = _nothing

    def _rest(self) -> None:
        """Under load, after a write: leave a producer that is fast alone for a while, so that its next pieces come together."""
        now = self._loop.time()
        if now - self._wrote_at < self._coalesce and not self._resting:
            self._resting = True
            self._pause()
            self._loop.call_later(self._coalesce, self._rested)
        self._wrote_at = now

    def _rested(self) -> None:
        self._resting = False
        if not self._full:
            self._resume()


def _nothing() -> None:
    pass
