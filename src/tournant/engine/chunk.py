"""A chunk on its way through a lane: what the lane's thread sees of a pool segment."""

from __future__ import annotations

import contextlib
import threading
from time import perf_counter
from typing import TYPE_CHECKING, Any

from tournant.engine.channel import Attempt
from tournant.observe.events import Odd
from tournant.pool.lanes import Lane
from tournant.pool.steps import Outbox, Part

if TYPE_CHECKING:
    from tournant.engine.pool_admission import Ticket
    from tournant.engine.pool_segment import PoolSegment


class Chunk:
    """Some items of one segment, out on a lane. A `tournant.pool.lanes.Job`.

    Attributes:
        items: items, or lists of items for ``map_batches``.
        values: what the steps are called with, one per entry of `items`.
        count: items in all.
        attempt: where the chunk is something that comes back.
        reported: entries of `items` that parts have told of.
        children: children of the entry in work that have been passed on.
        progress: when the attempt in work began, as far as is known; 0 before it began.
        paused: it gave its slot back while there is no room for its children.
        reserved: bytes that are counted for what it will make.
        sent: when it was handed over.
        told: until when what its worker did is recorded.
        waited: seconds that it had been ready before it was handed over.
        odd: units of a part that went wrong, while the part is taken.
        held: parts that the lane has sent without having got the word to go on.
        abandoned: nobody wants its results any more.
        recalled: its thread is to stop after the present item; what it has done counts.
        ticket: what travels in place of its value where the stage has a limit; otherwise ``None``.
    """

    __slots__ = (
        "abandoned", "announce", "attempt", "children", "count", "finished", "gate", "held", "hold", "items", "lane", "odd",
        "outbox", "paused", "paused_at", "progress", "recalled", "reported", "reserved", "segment", "sent", "skip", "spec", "spent",
        "ticket", "timed_out", "told", "values", "waited",
    )  # fmt: skip

    def __init__(
        self,
        segment: PoolSegment,
        items: list[Any],
        values: list[Any],
        *,
        count: int,
        attempt: Attempt | None = None,
    ) -> None:
        self.segment = segment
        self.spec = segment.spec
        self.items = items
        self.values = values
        self.count = count
        self.attempt = attempt
        self.skip = attempt.skip if attempt is not None else 0
        self.hold = segment.flat and segment.retry is not None
        #: Whether the worker says when it begins: a timeout must not count the start of a process.
        self.announce = segment.timeout is not None
        self.outbox: Outbox | None = None
        self.lane: Lane | None = None
        self.reported = 0
        self.children = self.skip
        self.spent = 0.0
        self.finished = 0
        self.progress = 0.0
        self.paused = False
        self.paused_at = 0.0
        self.held = 0
        self.reserved = 0
        self.abandoned = self.recalled = False
        self.timed_out = False
        self.ticket: Ticket | None = None
        self.sent = self.told = self.waited = 0.0
        self.odd: list[Odd] = []
        # One part may be under way before the lane has to wait for the loop's word.
        self.gate = threading.Semaphore(1)

    # On the lane's thread.

    def began(self) -> None:
        """Take the news that a worker has begun."""
        self.progress = perf_counter()

    def part(self, part: Part) -> None:
        """Carry a part to the loop."""
        self._post(self.segment.on_part, part)

    def wanted(self) -> bool:
        """Wait while a fan-out is held back; tell whether the rest is wanted."""
        if self.segment.flat and not self.abandoned:
            self.gate.acquire()
        return not (self.abandoned or self.recalled)

    def failed(self, error: BaseException) -> None:
        """Carry the news that the chunk could not start."""
        self._post(self.segment.on_failed, error)

    def died(self, how: str) -> None:
        """Carry the news that the worker died."""
        self._post(self.segment.on_died, how)

    def left(self) -> None:
        """Carry the news that the lane has stopped because nobody wants the rest."""
        self._post(self.segment.on_left)

    def _post(self, callback: Any, *args: Any) -> None:
        # A loop that is closed belongs to a cancelled run: whoever wanted this is gone.
        with contextlib.suppress(RuntimeError):
            self.segment.run.loop.call_soon_threadsafe(callback, self, *args)

    # On the loop.

    def origin(self) -> Any:
        """Return what the item in work descends from; for a fan-out."""
        return self.items[min(self.reported, len(self.items) - 1)].origin

    def pause(self) -> None:
        """Withhold the word to go on."""
        self.held += 1
        if not self.paused:
            self.paused = True
            self.paused_at = perf_counter()

    def resume(self) -> None:
        """Give the lane the word for every part that waits for it. The pause was no part of the attempt's time."""
        self.paused = False
        if self.progress:
            self.progress += perf_counter() - self.paused_at
        for _ in range(self.held):
            self.gate.release()
        self.held = 0

    def flush(self, outbox: Outbox) -> bool:
        """Send what waits behind a long item of a thread; tell whether there was anything."""
        if not self.segment.flat:
            return outbox.flush_if_free()
        # Every part of a fan-out needs the loop's word, this one too.
        if not self.gate.acquire(blocking=False):
            return False
        sent = outbox.flush_if_free()
        if not sent:
            self.gate.release()
        return sent

    def abandon(self) -> None:
        """Let the lane stop at the next chance."""
        self.abandoned = True
        self.gate.release()

    def kill(self) -> bool:
        """Kill the worker process that holds the chunk; False where it is a thread."""
        return self.lane is not None and self.lane.kill(self)
