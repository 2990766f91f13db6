"""Rates that several nodes share: one actor holds the limit, each node leases permits from it in blocks.

The limit itself stays what it is (`tournant.limits.shared`), in the limiter's process: buckets, freeze, steps, the one
line in which all wait. A node asks for as many permits as calls wait there, and for a few more where calls come fast; a
permit that nobody used within a quarter of a second goes back. What a node learns (usage, refusals, headers) it tells the
limiter, so one 429 freezes every node, those with permits in hand after a quarter of a second at the latest.
"""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict, deque
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from tournant.cluster.errors import ClusterError
from tournant.limits import rate
from tournant.limits.clock import SYSTEM
from tournant.limits.rate import RateLimit
from tournant.limits.shared import SharedLimit, Ticket
from tournant.limits.snapshot import LimitSnapshot
from tournant.limits.waiting import Line, Waiter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tournant.limits.headers import HeaderFacts
    from tournant.pipeline import Pipeline
    from tournant.stages import Stage

#: Seconds for which a leased permit may be used.
_GOOD_FOR = 0.25
#: The most permits of one lease.
_MOST = 64
#: Seconds that a lease for several waits for more than its first.
_LINGER = 0.01
#: Seconds between two messages of what a node has learned.
_TELL = 0.02
#: Calls whose usage may still be settled after they have ended.
_REMEMBERED = 4096


class Shared(NamedTuple):
    """A limit that the nodes share.

    Attributes:
        name: what nodes and limiter call it.
        limit: the description.
        stages: the stages that are limited by it.
    """

    name: str
    limit: RateLimit
    stages: tuple[str, ...]


def shared_limits(stages: Sequence[Stage]) -> list[Shared]:
    """Return the limits of some stages, each once."""
    found: dict[int, tuple[RateLimit, list[str]]] = {}
    for stage in stages:
        if stage.limit is not None:
            found.setdefault(id(stage.limit._shared), (stage.limit, []))[1].append(stage.name)
    return [
        Shared(f"limit {n}", limit, tuple(names)) for n, (limit, names) in enumerate(found.values())
    ]


class Lease(NamedTuple):
    """Permits: the numbers and the tokens of the calls that may go, and how the limit stands."""

    permits: tuple[tuple[int, float], ...]
    snapshot: LimitSnapshot


class Limiter:
    """The actor that holds the limits of a run. All its methods run on one loop.

    Args:
        limits: `Shared` limits.
    """

    def __init__(self, limits: list[Shared]) -> None:
        # A state of its own for each: the limiter may share its process with nothing else.
        self._limits = {
            one.name: SharedLimit(
                one.limit.requests,  # type: ignore[arg-type]
                one.limit.tokens,  # type: ignore[arg-type]
                one.limit._burst_seconds(one.limit.requests or one.limit.tokens),  # type: ignore[arg-type]
                SYSTEM,
            )
            for one in limits
        }
        self._count = 0
        self._tickets: OrderedDict[int, tuple[str, Ticket]] = OrderedDict()
        self._held: dict[str, set[int]] = {}

    async def lease(self, node: str, name: str, wanted: list[float]) -> Lease:
        """Wait until the first of the calls may go, and return a permit for it and for those that may go with it."""
        shared = self._limits[name]
        tickets = [Ticket(tokens) for tokens in wanted]
        takes = [asyncio.ensure_future(shared.take(ticket)) for ticket in tickets]
        try:
            await takes[0]
            if len(takes) > 1:
                await asyncio.wait(takes, timeout=_LINGER)
        finally:
            for take in takes:
                if not take.done():
                    take.cancel()
            await asyncio.gather(*takes, return_exceptions=True)
        permits = []
        for ticket in tickets:
            if ticket.held:
                self._count += 1
                self._tickets[self._count] = (name, ticket)
                self._held.setdefault(node, set()).add(self._count)
                permits.append((self._count, ticket.charged))
        while len(self._tickets) > _REMEMBERED + sum(map(len, self._held.values())):
            self._tickets.popitem(last=False)
        return Lease(tuple(permits), shared.snapshot(""))

    async def tell(self, node: str, words: list[tuple[Any, ...]]) -> None:
        """Take in what a node has learned: tuples of what, the limit's name, the permit's number and arguments."""
        for what, name, number, *rest in words:
            shared = self._limits[name]
            ticket = self._tickets[number][1] if number in self._tickets else None
            if what == "throttled":
                shared.throttled(ticket, *rest)
            elif what == "observe":
                shared.observe(rest[0], ticket)
            elif ticket is not None:
                if what != "settle":
                    self._held.get(node, set()).discard(number)
                getattr(shared, what)(ticket, *rest)

    async def gone(self, node: str) -> None:
        """A node is no more: its calls have ended."""
        for number in self._held.pop(node, set()):
            name, ticket = self._tickets[number]
            self._limits[name].close(ticket, False)

    async def snapshots(self) -> dict[str, LimitSnapshot]:
        """Return how the limits stand."""
        return {name: shared.snapshot("") for name, shared in self._limits.items()}


class _Line(Line[Ticket]):
    __slots__ = ()

    def first(self, count: int) -> list[Waiter[Ticket]]:
        """Return the first `count` that wait."""
        return list(islice(self._waiters, count))


class LeasedLimit(SharedLimit):
    """A node's side of a limit: takes the place of the state behind a `RateLimit`.

    Args:
        node: the node's name at the limiter.
        name: the limit's.
        limiter: the limiter's handle.
    """

    def __init__(self, node: str, name: str, limiter: Any) -> None:
        super().__init__(None, None, None, SYSTEM)
        self._node = node
        self._name = name
        self._limiter = limiter
        self._line: _Line = _Line()
        self._stock: deque[tuple[int, float, float]] = deque()
        self._asking = False
        self._error: BaseException | None = None
        self._takes: deque[float] = deque(maxlen=_MOST)
        self._words: list[tuple[Any, ...]] = []
        self._wake = threading.Event()
        self._last: LimitSnapshot | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._talk, name="tournant-limits", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Tell what there is to tell, and end the thread that does."""
        self._ended.set()
        self._wake.set()
        self._thread.join()

    # Passing

    def try_take(self, ticket: Ticket) -> bool:
        """Let `ticket` pass if there is a permit for it and nobody waits."""
        with self._lock:
            return not len(self._line) and self._from_stock(ticket)

    async def take(self, ticket: Ticket) -> None:
        """Wait until `ticket` has passed."""
        with self._lock:
            if not len(self._line) and self._from_stock(ticket):
                return
            waiter = self._line.join(ticket)
            self._wake.set()
        try:
            await waiter.future
        except BaseException:
            with self._lock:
                self._line.leave(waiter)
                if waiter.granted and ticket.held:
                    self._give_back(ticket)
            raise
        if not ticket.held and self._error is not None:
            raise ClusterError(
                f"the actor that holds the run's rate limits is lost ({self._error}); run again"
            ) from self._error

    def settle(self, ticket: Ticket, tokens: float) -> None:
        """Charge `ticket` with `tokens` in place of what it was charged before."""
        with self._lock:
            ticket.charged = tokens
            if ticket.granted_at >= 0:
                self._say("settle", ticket, tokens)

    def release(self, ticket: Ticket) -> None:
        """Undo `ticket`: the call never left."""
        with self._lock:
            if ticket.held:
                self._give_back(ticket)

    def close(self, ticket: Ticket, passed: bool) -> None:
        """End the call of `ticket`."""
        with self._lock:
            if ticket.held:
                ticket.held = False
                self._say("close", ticket, passed)

    # Learning

    def throttled(self, ticket: Ticket | None, retry_after: float | None, of: str | None) -> None:
        """Tell the limiter, and use no permit that was leased before."""
        with self._lock:
            if ticket is not None:
                if ticket.refused:
                    return
                ticket.refused = True
                ticket.charged = 0.0
            self._say("throttled", ticket, retry_after, of)
            self._expire(float("inf"))
        self._send()

    def observe(self, facts: HeaderFacts, ticket: Ticket | None) -> None:
        """Tell the limiter what a reply's headers say."""
        with self._lock:
            self._say("observe", ticket, facts)

    def snapshot(self, label: str) -> LimitSnapshot:
        """Return how things stood at the limiter when it was last heard of."""
        last = self._last
        if last is None:
            return LimitSnapshot(label, None, None, 0.0, len(self._line), 0, 0)
        return replace(last, key=label)

    # Inside; the lock is held

    def _say(self, what: str, ticket: Ticket | None, *rest: Any) -> None:
        number = int(ticket.marks[0]) if ticket is not None else 0
        if not self._words:
            self._wake.set()
        self._words.append((what, self._name, number, *rest))

    def _give_back(self, ticket: Ticket) -> None:
        ticket.held = False
        ticket.charged = 0.0
        self._say("release", ticket)

    def _from_stock(self, ticket: Ticket) -> bool:
        self._expire(self.clock.now() - _GOOD_FOR)
        if not self._stock:
            return False
        number, tokens, _ = self._stock.popleft()
        self._pass_with(ticket, number, tokens)
        return True

    def _pass_with(self, ticket: Ticket, number: int, tokens: float) -> None:
        now = self.clock.now()
        ticket.held = True
        ticket.granted_at = now
        ticket.marks = (float(number), 0.0)
        self._takes.append(now)
        if tokens != ticket.charged:
            self._say("settle", ticket, ticket.charged)

    def _expire(self, before: float) -> None:
        while self._stock and self._stock[0][2] < before:
            if not self._words:
                self._wake.set()
            self._words.append(("release", self._name, self._stock.popleft()[0]))

    def _to_lease_for(self) -> list[float]:
        """Return the tokens of the calls to lease for, and note that it is done; none where nobody waits or it was done."""
        if self._asking or not len(self._line):
            return []
        self._asking = True
        wanted = [waiter.what.charged for waiter in self._line.first(_MOST)]
        takes = self._takes
        if len(takes) > 1 and takes[-1] > takes[0]:
            pace = len(takes) / (self.clock.now() - takes[0])
            mean = sum(wanted) / len(wanted)
            wanted += [mean] * min(_MOST - len(wanted), int(pace * _GOOD_FOR / 4))
        return wanted

    # On threads of its own; no lock is held, for Ray may call back at once.

    def _leased(self, future: Any) -> None:
        """A lease has come; on Ray's thread, which must not call Ray."""
        with self._lock:
            self._asking = False
            try:
                lease = future.result()
            except BaseException as problem:
                self._error = problem
                for waiter in self._line.first(len(self._line)):
                    self._line.leave(waiter)
                    waiter.wake(None)
                return
            self._last = lease.snapshot
            now = self.clock.now()
            self._stock.extend((number, tokens, now) for number, tokens in lease.permits)
            while self._stock and (head := self._line.head()) is not None:
                self._line.leave(head)
                if head.gone(None):
                    continue
                number, tokens, _ = self._stock.popleft()
                self._pass_with(head.what, number, tokens)
                if not head.wake(None):
                    self._give_back(head.what)
            if len(self._line):
                self._wake.set()

    def _talk(self) -> None:
        """Lease when somebody waits, and tell the limiter, now and then, what there is to tell."""
        told = self.clock.now()
        while not self._ended.is_set():
            with self._lock:
                pause = max(0.0, told + _TELL - self.clock.now()) if self._words else _GOOD_FOR
            self._wake.wait(pause)
            self._wake.clear()
            with self._lock:
                self._expire(self.clock.now() - _GOOD_FOR)
                wanted = self._to_lease_for()
            if wanted:
                future = self._limiter.lease.remote(self._node, self._name, wanted).future()
                future.add_done_callback(self._leased)
            if self.clock.now() >= told + _TELL:
                told = self.clock.now()
                self._send()
        self._send()

    def _send(self) -> None:
        with self._lock:
            words, self._words = self._words, []
        if words:
            self._limiter.tell.remote(self._node, words)


class Joined:
    """A node's leased limits, from `join`."""

    def __init__(self, limits: dict[str, LeasedLimit], shared: list[Shared]) -> None:
        self._limits = limits
        self._shared = shared

    def take_over(self, pipeline: Pipeline) -> None:
        """Have the stages of `pipeline` count at the limiter."""
        by_stage = {stage: one.name for one in self._shared for stage in one.stages}
        for stage in pipeline.stages:
            if stage.limit is not None:
                object.__setattr__(stage.limit, "_shared", self._limits[by_stage[stage.name]])


def join(node: str, limits: list[Shared], limiter: Any) -> Joined:
    """Have every `RateLimit` that names a shared key count at the limiter from now on, whoever makes it."""
    leased = {one.name: LeasedLimit(node, one.name, limiter) for one in limits}
    for one in limits:
        limit = one.limit
        if limit.key is not None:
            figures = rate._known[limit.key][0]
            rate._known[limit.key] = (figures, leased[one.name])
    return Joined(leased, limits)
