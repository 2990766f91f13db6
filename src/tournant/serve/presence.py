"""Ending what is done for a client the moment that the client leaves, or the server has to stop.

What hears of the connection's end first (the connection itself, or a task that waits for it) cancels the work, wherever that is
waiting: in a queue, for a connection, for the next token. Nothing polls.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Protocol

from tournant.serve.bodies import DIRECT, ClientLeft, Receive, Scope


class Watchable(Protocol):
    """A connection that tells when its client leaves."""

    def watch(self, presence: Presence) -> None:
        """Call `Presence.left` when the client leaves; at once when it has left already."""

    def unwatch(self, presence: Presence) -> None:
        """Call it no more."""


class Running:
    """The work in progress that must end when the server stops."""

    def __init__(self) -> None:
        self._present: set[Presence] = set()
        self._idle = asyncio.Event()
        self._idle.set()

    def __len__(self) -> int:
        return len(self._present)

    def add(self, presence: Presence) -> None:
        """Take in that work begins."""
        self._present.add(presence)
        self._idle.clear()

    def discard(self, presence: Presence) -> None:
        """Take in that it has ended."""
        self._present.discard(presence)
        if not self._present:
            self._idle.set()

    def interrupt(self, reason: Exception) -> None:
        """End all of it."""
        for presence in list(self._present):
            presence.interrupt(reason)

    async def idle(self) -> None:
        """Wait until there is none."""
        await self._idle.wait()


class Presence:
    """A block that ends early when its client leaves, or somebody interrupts it.

    Enter it after the request's body was read. When the client leaves, the block is cancelled and leaving it raises
    `ClientLeft`; when it is interrupted, it raises what `interrupt` was given.

    Args:
        receive: The request's ``receive``, or ``None`` where somebody else watches the client.
        running: Where the block counts as work in progress.
        scope: The request's scope: where it holds the connection itself, that tells when the client leaves, and no task is needed.
    """

    __slots__ = (
        "_before",
        "_connection",
        "_over",
        "_receive",
        "_running",
        "_task",
        "_watcher",
        "reason",
    )

    def __init__(
        self,
        receive: Receive | None,
        running: Running | None = None,
        scope: Scope | None = None,
    ) -> None:
        self._connection: Watchable | None = None if scope is None else scope.get(DIRECT)
        self._running = running
        self._receive = receive
        self._watcher: asyncio.Task[None] | None = None
        self._over = False
        self.reason: Exception | None = None

    async def __aenter__(self) -> Presence:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._before = task.cancelling()
        if self._running is not None:
            self._running.add(self)
        if self._connection is not None:
            self._connection.watch(self)
        elif self._receive is not None:
            self._watcher = asyncio.get_running_loop().create_task(self._watch(self._receive))
        return self

    def interrupt(self, reason: Exception) -> None:
        """End the block with `reason`; only the first counts. Call it from outside of the block's own task."""
        if self.reason is None and not self._over:
            self.reason = reason
            self._task.cancel()

    def left(self) -> None:
        """Take in that the client has left."""
        self.interrupt(ClientLeft())

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over = True
        if self._running is not None:
            self._running.discard(self)
        if self._connection is not None:
            self._connection.unwatch(self)
        elif self._watcher is not None:
            self._watcher.cancel()
        # An error whose traceback leads back to itself would keep all of the request until the garbage collection.
        reason, self.reason = self.reason, None
        if reason is None:
            return
        try:
            if self._task.uncancel() <= self._before and isinstance(error, asyncio.CancelledError):
                raise reason from None
        finally:
            del reason, error, trace

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self.left()
