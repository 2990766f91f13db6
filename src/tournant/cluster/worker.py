"""The driver's view of one node: its actor, what was dealt to it and has not come back, and how fast it is."""

from __future__ import annotations

import asyncio
import contextlib
from time import perf_counter
from typing import TYPE_CHECKING, Any

from tournant._version import __version__
from tournant.cluster import connection
from tournant.cluster.errors import ClusterError
from tournant.cluster.messages import Dealt, Ended, Hello, Measured, News, pack, unpack

if TYPE_CHECKING:
    from tournant.cluster.connection import ClusterNode

#: Seconds of work that one shard is, where the size is not given.
_SHARD_SECONDS = 0.25
#: The most inputs of such a shard.
_MOST = 2048
#: Shards that lie ready on a node.
_AHEAD = 2


class Worker:
    """One node at work.

    Attributes:
        node: where it is.
        name: for messages; unique in the run.
        inflight: numbers of the inputs that it has, in the order in which they were dealt.
        ready: its actor has built the pipeline.
        hungry: it has said that its queue runs low, and was dealt nothing since.
        probing: it has suspects and nothing else: each may be what killed an actor.
        reserved: it is dealt nothing, so that it comes to be free for suspects.
        asked: inputs that it was asked to give back.
        stopped: it was told to end its run.
        useful: an input has ended on it.
        hello: what it said when it was ready.
        measured: how its stages stood last.
        ended: how its run ended.
    """

    def __init__(self, node: ClusterNode, name: str, actor: Any, shard: int | None) -> None:
        self.node = node
        self.name = name
        self.actor = actor
        self.inflight: dict[int, None] = {}
        self.ready = self.hungry = self.probing = self.reserved = self.useful = False
        self.starved = False
        self.asked = self.stopped = False
        self.hello: Hello | None = None
        self.measured: tuple[Measured, ...] = ()
        self.ended: Ended | None = None
        self.outputs = 0
        self._fixed = shard
        self._shard = max(1, node.cores)
        self._dealt = self._turn = 0
        self._pulled = 0
        self._returned = 0
        self._pace = 0.0
        self._heard = 0.0

    @property
    def queued(self) -> int:
        """How many inputs lie on the node and have not begun, as far as the driver knows."""
        return self._dealt - self._pulled - self._returned

    @property
    def shard(self) -> int:
        """How many inputs it is dealt at once."""
        return self._fixed or self._shard

    @property
    def room(self) -> int:
        """How many inputs it should be dealt now."""
        room = _AHEAD * self.shard - self.queued
        return room if room >= self.shard or self.hungry else 0

    async def begin(
        self, description: Any, wants: bool, limits: list[Any], limiter: Any, timeout: float
    ) -> None:
        """Wait until the actor is there and has built the pipeline.

        Raises:
            ClusterError: it can't build it, or it runs other versions.
            TimeoutError: it was not there in `timeout` seconds.
            ray.exceptions.RayError: the actor is lost.
        """
        ref = self.actor.start.remote(description, wants, self.name, limits, limiter)
        said = await connection.answer(ref, timeout)
        if isinstance(said, bytes):
            raise unpack(said)
        if said.version != __version__:
            raise ClusterError(
                f"the node {self.name} has tournant {said.version}, and the driver {__version__}: install the same version on "
                "all machines"
            )
        self.hello = said
        self.ready = True
        self._heard = perf_counter()

    def deal(self, inputs: list[Dealt], starved: bool) -> None:
        """Send inputs; `starved` says that there are no more for now."""
        self._turn += 1
        # References have to be seen by Ray; all else goes as one pickle, at which it need not look.
        references = [dealt.value for dealt in inputs if not isinstance(dealt.value, bytes)]
        if references:
            inputs_there = [
                d if isinstance(d.value, bytes) else d._replace(value=None) for d in inputs
            ]
        else:
            inputs_there = inputs
        data = pack(inputs_there)
        self.actor.deal.remote(self._turn, data, references, starved)
        self._dealt += len(inputs)
        self.starved = starved
        for dealt in inputs:
            self.inflight[dealt.number] = None
        if inputs:
            self.hungry = False

    def give_back(self, count: int) -> None:
        """Ask for `count` inputs that have not begun."""
        self.asked = True
        self.actor.give_back.remote(count)

    async def listen(self, timeout: float) -> News:
        """Wait for news; see `begin` for what is raised."""
        said: bytes = await connection.answer(self.actor.listen.remote(), timeout)
        news: News = unpack(said)
        now = perf_counter()
        elapsed, self._heard = now - self._heard, now
        pulled = news.pulled - self._pulled
        self._pulled = news.pulled
        for number in news.returned:
            self.inflight.pop(number, None)
        self._returned += len(news.returned)
        if news.returned:
            self.asked = False
        if news.closed:
            self.useful = True
        if news.measured is not None:
            self.measured = news.measured
        self.ended = news.ended
        # Half the shard that it was dealt last has begun, or there was none.
        self.hungry = self.hungry or self.queued <= self.shard // 2
        if elapsed > 0:
            self._adapt(pulled / elapsed)
        return news

    def _adapt(self, pace: float) -> None:
        """Follow the node's pace; a shard at most doubles from one report to the next."""
        self._pace = pace if not self._pace else 0.7 * self._pace + 0.3 * pace
        wanted = max(1, int(self._pace * _SHARD_SECONDS))
        self._shard = min(wanted, 2 * self._shard, _MOST)

    def stop(self, how: str) -> Any:
        """Have the node end its run; see `Node.stop`. Returns a reference to wait for, or ``None``."""
        self.stopped = True
        with contextlib.suppress(Exception):
            return self.actor.stop.remote(how)
        return None

    def kill(self, ray: Any) -> None:
        """End the actor's process."""
        with contextlib.suppress(Exception):
            ray.kill(self.actor)


async def wait_all(refs: list[Any], timeout: float) -> None:
    """Wait until the actors have answered or are lost, at most `timeout` seconds."""
    futures = [asyncio.wrap_future(ref.future()) for ref in refs if ref is not None]
    for future in futures:
        future.add_done_callback(connection._seen)
    if futures:
        await asyncio.wait(futures, timeout=timeout)
