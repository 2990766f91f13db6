"""Batches out of the texts of many clients: work-conserving, without a timer, and nobody starves.

A text that arrives while a worker is free goes to it at once. Otherwise texts queue, and whichever worker comes free takes
the oldest one and fills its batch up with texts of similar length. What is similar follows from costs: a text joins if the padding that it
brings costs clearly less than the call that it saves. So batches grow with the load, and only then.

One request has at most a *share* of tokens in the queue at a time; the rest of it follows as its texts are done. So a request of
thousands of texts keeps all workers busy, and a single question that comes after it waits for one share, not for all of it.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left, bisect_right, insort
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from tournant.errors import WorkerDied

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_ATTEMPTS = 2
_SMOOTH = 0.05
_FIRST_GUESS = 2e-4  # seconds a token, on one worker


class Crew(Protocol):
    """Who embeds; `tournant.serve.workers.Workers` is one."""

    count: int
    free: int
    on_free: Callable[[], None]

    def run(self, texts: list[str]) -> asyncio.Future[NDArray[np.float32]]:
        """Embed a batch on a free worker."""
        ...


@dataclass(frozen=True, slots=True)
class BatchPolicy:
    """What a batch may hold.

    Measured on a transformer of 6 layers on one core: a call costs as much as 13 tokens and its way through the pipe about half as
    much again, and a token costs the same in calls of 64 padded tokens and of 1,000. Above 400 next to nothing is gained, and who
    comes next waits longer.

    Attributes:
        tokens: The most padded tokens in a batch; one longer text goes alone. Default 384.
        texts: The most texts in a batch. Default 64.
        padding: The most padding, in tokens, that a text may bring. Default 8: less than a call costs, since a text that
            is left may find a better match.
    """

    tokens: int = 384
    texts: int = 64
    padding: int = 8


class _Request:
    """The texts of one caller."""

    __slots__ = ("future", "in_queue", "later", "left", "queued", "vectors")

    def __init__(self, texts: int, future: asyncio.Future[list[Any]]) -> None:
        self.future = future
        self.later: deque[_Row] = deque()
        self.queued: set[_Row] = set()
        self.left = texts
        self.in_queue = 0  # tokens
        self.vectors: list[Any] = [None] * texts


class _Row:
    """One text on its way."""

    __slots__ = ("attempts", "length", "number", "request", "since", "text")

    def __init__(self, request: _Request, number: int, text: str, length: int) -> None:
        self.request = request
        self.number = number
        self.text = text
        self.length = length
        self.since = 0.0
        self.attempts = 0


class Batcher:
    """The queue in front of the workers. For one event loop.

    Args:
        crew: Who embeds.
        policy: What a batch may hold.
        share: The most tokens that one request has in the queue at a time. Default: four batches a worker.

    Attributes:
        texts: How many texts wait.
        tokens: Their tokens.
        batches: How many batches have been made.
        padded: Their padded tokens.
        embedded: How many texts have been embedded.
        dropped: How many texts left the queue because nobody waited for them any more.
    """

    def __init__(
        self, crew: Crew, policy: BatchPolicy | None = None, share: int | None = None
    ) -> None:
        self._crew = crew
        self._policy = policy or BatchPolicy()
        self._share = share or 4 * self._policy.tokens * crew.count
        self._order: OrderedDict[_Row, None] = OrderedDict()
        self._by_length: dict[int, OrderedDict[_Row, None]] = {}
        self._lengths: list[int] = []
        self._queued = 0  # tokens
        self._seconds = _FIRST_GUESS
        self._requests: set[_Request] = set()
        self._due = False
        self.texts = self.tokens = 0
        self.batches = self.padded = self.embedded = self.dropped = 0
        crew.on_free = self._wake

    def oldest(self) -> float:
        """Return for how many seconds the oldest text has been waiting."""
        row = next(iter(self._order), None)
        return 0.0 if row is None else asyncio.get_running_loop().time() - row.since

    def expected_wait(self) -> float:
        """Return the seconds until all that waits is done, from how long batches took lately."""
        return self.tokens * self._seconds / self._crew.count

    async def submit(
        self, texts: Sequence[str], lengths: Sequence[int]
    ) -> list[NDArray[np.float32]]:
        """Embed texts; cancelling takes those out of the queue that no worker has begun with.

        Args:
            texts: The texts.
            lengths: The tokens of each, as far as the model reads it.

        Returns:
            A vector for each text, a read-only array of its own.

        Raises:
            WorkerDied: a text's worker died, and so did its successor with that text alone.
            Exception: what the embedder raised for a text alone.
        """
        if not texts:
            return []
        request = _Request(len(texts), asyncio.get_running_loop().create_future())
        self._requests.add(request)
        # Sorted, so that what enters the queue together is of similar length.
        for number in sorted(range(len(texts)), key=lambda n: -lengths[n]):
            request.later.append(_Row(request, number, texts[number], max(1, lengths[number])))
        self.texts += len(texts)
        self.tokens += sum(row.length for row in request.later)
        self._feed(request)
        try:
            return await request.future
        finally:
            self._requests.discard(request)
            self._abandon(request)

    def close(self, error: Exception) -> None:
        """Tell everyone who still waits that there will be nothing: with `error`."""
        for request in self._requests:
            if not request.future.done():
                request.future.set_exception(error)
            self._abandon(request)

    # The queue

    def _feed(self, request: _Request) -> None:
        """Move texts of a request into the queue, up to its share, and see to it that a worker looks."""
        now = asyncio.get_running_loop().time()
        later = request.later
        while later and (not request.queued or request.in_queue + later[0].length <= self._share):
            row = later.popleft()
            row.since = now
            self._put(row)
        self._wake()

    def _put(self, row: _Row) -> None:
        self._order[row] = None
        self._in(row)
        bucket = self._by_length.get(row.length)
        if bucket is None:
            bucket = self._by_length[row.length] = OrderedDict()
            insort(self._lengths, row.length)
        bucket[row] = None

    def _in(self, row: _Row) -> None:
        row.request.queued.add(row)
        row.request.in_queue += row.length
        self._queued += row.length

    def _out(self, row: _Row) -> None:
        """Take a row out of the queue."""
        del self._order[row]
        row.request.queued.discard(row)
        row.request.in_queue -= row.length
        self._queued -= row.length
        self.texts -= 1
        self.tokens -= row.length
        bucket = self._by_length.get(row.length)
        if bucket is not None and row in bucket:
            del bucket[row]
            if not bucket:
                del self._by_length[row.length]
                del self._lengths[bisect_left(self._lengths, row.length)]

    def _abandon(self, request: _Request) -> None:
        """Drop what is left in the queue of a request that nobody waits for."""
        request.future.cancel()
        self.dropped += len(request.queued) + len(request.later)
        for row in list(request.queued):
            self._out(row)
        self.texts -= len(request.later)
        self.tokens -= sum(row.length for row in request.later)
        request.later.clear()

    # Batches

    def _wake(self) -> None:
        """Look when the loop comes round: what arrives in the same moment goes together, and what failed goes first."""
        if not self._due and self._order:
            self._due = True
            asyncio.get_running_loop().call_soon(self._dispatch)

    def _dispatch(self) -> None:
        self._due = False
        while self._order and self._crew.free > 0:
            batch = self._take()
            if not batch:
                return
            self.batches += 1
            self.padded += len(batch) * max(row.length for row in batch)
            for request in {row.request for row in batch}:
                if request.later:
                    self._feed(request)
            future = self._crew.run([row.text for row in batch])
            now = asyncio.get_running_loop().time()
            future.add_done_callback(partial(self._ended, batch, now))

    def _take(self) -> list[_Row]:
        """Take the oldest text, and what goes well with it."""
        policy = self._policy
        oldest = self._first(self._order)
        if oldest is None:
            return []
        most = policy.tokens
        if self._crew.free > 1:  # each gets its part of what there is
            fair = -(-self._queued // self._crew.free)
            most = min(most, max(fair, oldest.length))
        self._out(oldest)
        batch = [oldest]
        if oldest.attempts:  # it was there when something went wrong: alone, it harms nobody else
            return batch
        length = longest = oldest.length
        low = bisect_left(self._lengths, length - policy.padding)
        high = bisect_right(self._lengths, length + policy.padding)
        for similar in sorted(self._lengths[low:high], key=lambda other: abs(other - length)):
            height = max(longest, similar)
            while len(batch) < policy.texts and height * (len(batch) + 1) <= most:
                padding = (height - longest) * len(batch) + height - similar
                bucket = self._by_length.get(similar)
                row = None if bucket is None else self._first(bucket)
                if row is None or padding > policy.padding:
                    break
                self._out(row)
                batch.append(row)
                longest = height
        return batch

    def _first(self, rows: OrderedDict[_Row, None]) -> _Row | None:
        """Return the first row that somebody waits for, and drop what is in front of it."""
        while rows:
            row = next(iter(rows))
            if not row.request.future.done():
                return row
            self._abandon(row.request)  # cancelled in this very round of the loop
        return None

    def _ended(
        self, batch: list[_Row], began: float, future: asyncio.Future[NDArray[np.float32]]
    ) -> None:
        error = WorkerDied("given up") if future.cancelled() else future.exception()
        if error is None:
            seconds = asyncio.get_running_loop().time() - began
            padded = len(batch) * max(row.length for row in batch)
            self._seconds += _SMOOTH * (seconds / padded - self._seconds)
            for row, vector in zip(batch, future.result(), strict=True):
                self._done(row, vector)
        else:
            for row in reversed(batch):
                self._failed(row, error, alone=len(batch) == 1)
        self._wake()

    def _done(self, row: _Row, vector: NDArray[np.float32]) -> None:
        request = row.request
        self.embedded += 1
        if request.future.done():
            return
        own = vector.copy()  # a view would keep its whole batch in memory
        own.flags.writeable = False
        request.vectors[row.number] = own
        request.left -= 1
        if not request.left:
            request.future.set_result(request.vectors)

    def _failed(self, row: _Row, error: BaseException, *, alone: bool) -> None:
        """Try a row again by itself; what fails a second time, or alone by an error of its own, is to blame."""
        if row.request.future.done():
            return
        row.attempts += 1
        died = isinstance(error, WorkerDied)
        if row.attempts < _ATTEMPTS and (died or not alone):
            self._order[row] = None
            self._order.move_to_end(row, last=False)
            self._in(row)
            self.texts += 1
            self.tokens += row.length
            return
        if died:
            error = WorkerDied(
                f"a text of {len(row.text):,} characters was with {row.attempts} processes when they died; "
                "shorten it, or give the server more memory"
            )
        row.request.future.set_exception(error)
        self._abandon(row.request)
