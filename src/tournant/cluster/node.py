"""One node's part of a run: an actor, and in it an ordinary run that is fed by the driver and reports to it.

The engine is the same as on one machine. Its source is the queue of what the driver has dealt, and where a local run would write
the ledger it tells the driver. Ray calls the actor's methods on threads of its own; the run has its loop in another.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import platform
import sys
import threading
from collections import deque
from time import perf_counter
from typing import TYPE_CHECKING, Any

from tournant._version import __version__
from tournant.cluster.errors import ClusterError
from tournant.cluster.messages import (
    Broken,
    Closed,
    Dealt,
    Ended,
    Hello,
    Measured,
    Member,
    News,
    Output,
    Packed,
    pack,
    pack_error,
    pack_result,
    unpack,
)
from tournant.engine import crew
from tournant.engine.lineage import ARRIVED, Batch, Input, Item
from tournant.engine.run import Run
from tournant.engine.source import Source
from tournant.errors import NotPicklable, PipelineFailed
from tournant.sync import LoopThread, outcome

if TYPE_CHECKING:
    from tournant.engine.channel import Channel
    from tournant.pipeline import Pipeline
    from tournant.stages import Stage

#: Seconds between two reports of what has ended, unless the driver has something to do at once.
_INTERVAL = 0.2
#: Seconds for which the driver's question stays open when there is nothing to say.
_PATIENCE = 0.5
#: Seconds between two measurements of the stages.
_MEASURE = 0.5
#: Seconds of work that may lie in front of a first stage on the loop, and the fewest inputs: what lies there can't be given back.
_LYING, _FEWEST = 0.1, 4
#: Pickles above this are taken apart on a thread.
_LARGE = 1 << 20

_Result = tuple[tuple[Member, ...], Any]
_Failure = tuple[tuple[Member, ...], str, Exception, int]


class Feed(Source):
    """The source of a node's run: what the driver deals.

    Attributes:
        queue: dealt and not yet begun.
        numbers: the driver's number of each input, by its index in this run.
        starved: the driver has nothing more for now, so partial batches need not wait.
        closing: nothing more will be dealt.
        pulled: inputs that the engine has taken in.
    """

    def __init__(self, run: NodeRun, inbox: Channel) -> None:
        super().__init__(run, inbox)
        self._node = run
        self.queue: deque[Dealt] = deque()
        self.numbers: dict[int, int] = {}
        self.starved = self.closing = False
        self.pulled = 0
        #: With so many left the driver should send more.
        self.low = 0
        self._more = asyncio.Event()

    def look(self) -> None:
        """Something has changed; called on the loop."""
        self._more.set()

    def stop(self) -> None:
        """Take no more inputs."""
        super().stop()
        self._more.set()

    async def feed(self) -> None:
        """Put what is dealt into the first channel, until the driver says that this was all."""
        run = self.run
        try:
            while not self.stopped:
                try:
                    dealt = self.queue.popleft()
                except IndexError:
                    if self.closing:
                        break
                    self._node.hungry()
                    self._more.clear()
                    self.waiting = self.starved
                    if not self.queue and not self.closing and not self.stopped:
                        await self._more.wait()
                    self.waiting = False
                    continue
                await self._begin(dealt)
        finally:
            self.done = True
            self.inbox.close()
            run.segment_done()

    async def _begin(self, dealt: Dealt) -> None:
        if len(self.queue) == self.low:
            self._node.hungry()
        self._node.consuming = False
        self.numbers[self.admitted] = dealt.number
        key: Any = dealt.key
        try:
            data = dealt.value
            if not isinstance(data, bytes):
                data = await asyncio.wrap_future(data.future())
            large = len(data) > _LARGE
            value = await asyncio.to_thread(unpack, data) if large else unpack(data)
        except Exception as problem:
            error = NotPicklable(
                f"the input can't be read on the node ({type(problem).__name__}: {problem}); install what its class needs there, "
                "or give paths and addresses as inputs and open them in the first stage"
            )
            error.__cause__ = problem
            origin = Input(key, self.admitted, self.run.first_barrier, None)
            self.sourced += 1
            self.admitted += 1
            self.pulled += 1
            self.run.fail(Item(None, origin), self.run.pipeline.stages[0], error, 1)
            return
        await self._put((value, key, None))
        self.pulled += 1


class _NoBooks:
    """Stands where a ledger would: that there is one has the engine close each input by itself."""

    def settled(self, origin: Input, outcome: Any) -> None:
        """Do nothing: the driver writes it down."""

    def failed(self, origin: Input, failure: Any) -> None:
        """Do nothing: the driver writes it down."""

    async def flush(self) -> None:
        """Do nothing."""

    async def close(self, report: Any) -> None:
        """Do nothing."""


class NodeRun(Run):
    """The run on one node.

    Attributes:
        feed: its source.
        ended_inputs: what has ended and is not yet reported.
        wants: the driver wants the results.
        consumer: takes them, where it does.
        news: set when there is something to say.
        urgent: set when that can't wait.
    """

    def __init__(self, pipeline: Pipeline, wants: bool) -> None:
        super().__init__(pipeline, stream=wants)
        self.wants = wants
        self.feed = Feed(self, self.source.inbox)
        self.source = self.feed
        self.books = _NoBooks()  # type: ignore[assignment]
        self.ended_inputs: deque[tuple[Input, list[_Result], list[_Failure]]] = deque()
        self.broken: deque[_Failure] = deque()
        self.measured: tuple[Measured, ...] = ()
        self.measures = 0
        self._ended_before = 0
        self.news = threading.Event()
        self.urgent = threading.Event()
        self.is_hungry = False
        self.consumer: asyncio.Task[None] | None = None
        #: By index: what came of an input that has not ended yet. What several inputs share stands with each of them.
        self._results: dict[int, list[_Result]] = {}
        self._failures: dict[int, list[_Failure]] = {}

    async def start(self) -> None:
        """Start as any run, and get the workers ready."""
        if self.results is not None:
            self.consumer = self.spawn(self._consume(self.results), "tournant results")
        self.consuming = True
        await super().start()
        crew.prestart(self)
        self.spawn(self._measure(), "tournant measures")

    async def _consume(self, results: Channel) -> None:
        """Keep what comes out of the last stage until its inputs have ended."""
        items = results.items
        while items or not results.closed:
            while items:
                item = items.popleft()
                _remember(self._results, (self._members(item), item.value))
                self.outputs += 1
                self.end_item(item, ARRIVED)
            results.removed()
            if not results.closed:
                await results.wait_items()

    def hungry(self) -> None:
        """The queue is empty: the driver should know at once."""
        self.is_hungry = True
        self.urgent.set()
        self.news.set()

    def fail(self, item: Item, stage: Stage, error: Exception, attempts: int) -> None:
        """An item has failed for good."""
        members = self._members(item)
        failure = (members, stage.name, error, attempts)
        if self.failures.stops(stage):
            # The driver has to know now: what else descends from the input may never end.
            self.broken.append(failure)
            self.urgent.set()
            self.news.set()
        else:
            _remember(self._failures, failure)
        super().fail(item, stage, error, attempts)

    def close_input(self, origin: Input) -> None:
        """Nothing is left of an input: the driver is told."""
        super().close_input(origin)
        number = self.feed.numbers[origin.index]
        results, failures = self._results.pop(number, []), self._failures.pop(number, [])
        for shared in (results, failures):
            for entry in shared:
                # Whoever ends first takes along what is shared.
                if len(entry[0]) > 1:
                    _forget(self._results if shared is results else self._failures, entry)
        self.ended_inputs.append((origin, results, failures))
        # A node without inputs waits for the driver, which is no standstill of its own.
        self.consuming = self.feed.admitted == self.done + self.failed + self.filtered
        if not self.news.is_set():
            self.news.set()

    def leftover(self) -> list[_Failure]:
        """Return the failures of inputs that have not ended, when the run has."""
        found = {id(entry): entry for entries in self._failures.values() for entry in entries}
        return list(found.values())

    def _members(self, item: Item) -> tuple[Member, ...]:
        origin = item.origin
        if isinstance(origin, Input):
            return (Member(self.feed.numbers[origin.index], item.pos),)
        return tuple(_flat(origin, self.feed.numbers))

    async def _measure(self) -> None:
        while True:
            self.measure()
            await asyncio.sleep(_MEASURE)

    def measure(self) -> None:
        """Take down how the stages stand; on the loop."""
        duration = perf_counter() - self.began
        measured = []
        for segment in self.segments:
            pooled = segment.on in ("threads", "processes") and not getattr(
                segment, "blocking", False
            )
            for n, stats in enumerate(segment.stats):
                stage = stats.report(duration)
                queued = segment.queued() if n == 0 else 0
                running = max(0, segment.running(n))
                pressed = stats.gate.pressed if stats.gate is not None else 0.0
                measured.append(
                    Measured(stage, dict(stats._buckets), queued, running, pressed, pooled)
                )
        self.measured = tuple(measured)
        self.measures += 1
        self._bound()

    def _bound(self) -> None:
        """Let no more inputs lie in front of calls that take long than another node may be glad of."""
        first, feed = self.segments[0], self.feed
        ended = self.done + self.failed + self.filtered
        pace, self._ended_before = (ended - self._ended_before) / _MEASURE, ended
        if first.on == "loop":
            lying = int(pace * _LYING)
            feed.inbox.set_capacity(max(_FEWEST, min(first.capacity(), lying)))
            feed.inbox.removed()


def _remember(kept: dict[int, Any], entry: Any) -> None:
    for number in {member.number for member in entry[0]}:
        kept.setdefault(number, []).append(entry)


def _forget(kept: dict[int, Any], entry: Any) -> None:
    for number in {member.number for member in entry[0]}:
        if number in kept:
            kept[number] = [other for other in kept[number] if other is not entry]


def _flat(batch: Batch, numbers: dict[int, int]) -> list[Member]:
    members: list[Member] = []
    for item in batch.members:
        if isinstance(item.origin, Input):
            members.append(Member(numbers[item.origin.index], item.pos))
        else:
            members += _flat(item.origin, numbers)
    return members


class Node:
    """The actor. Ray makes one on each node.

    Args:
        cores: with which its engine works.
        path: the driver's ``sys.path``.
    """

    def __init__(self, cores: int, path: list[str]) -> None:
        os.environ["TOURNANT_CORES"] = str(cores)
        self._cores = cores
        # As for worker processes: modules beside the driver's script are found here too, where they exist.
        sys.path += [entry for entry in path if entry not in sys.path and os.path.isdir(entry)]
        self._thread: LoopThread | None = None
        self._run: NodeRun | None = None
        self._returned: deque[int] = deque()
        self._lock = threading.Lock()
        self._turn = 0
        self._ended: Ended | None = None
        self._told = 0.0
        self._measures = 0
        self._finished = threading.Event()

    def start(
        self, description: bytes, wants: bool, name: str, limits: list[Any], limiter: Any
    ) -> Hello | bytes:
        """Build the pipeline and begin to wait for inputs.

        Returns:
            What the node says of itself, or the pickle of an error.
        """
        try:
            from tournant.cluster import leases
            from tournant.cluster.placing import on_nodes

            joined = leases.join(name, limits, limiter)
            pipeline = on_nodes(*unpack(description), wants=wants)
            joined.take_over(pipeline)
        except Exception as problem:
            error = ClusterError(
                f"the pipeline can't be built on the node {platform.node()} ({type(problem).__name__}: {problem}). What its stages "
                "import has to be installed there, in the same version; or let Ray bring it: "
                'tn.cluster.Ray(runtime_env={"working_dir": ".", "pip": [...]})'
            )
            return pack_error(error)
        self._thread = LoopThread("tournant-node")
        self._thread.__enter__()
        try:
            self._run = outcome(self._thread.submit(self._begin, pipeline, wants))
        except Exception as problem:
            return pack_error(problem)
        self._thread.submit(self._end)
        return Hello(
            platform.node(), os.getpid(), self._cores, __version__, platform.python_version()
        )

    async def _begin(self, pipeline: Pipeline, wants: bool) -> NodeRun:
        run = NodeRun(pipeline, wants)
        await run.start()
        return run

    async def _end(self) -> None:
        run = self._run
        assert run is not None
        if run.consumer is not None:
            await asyncio.wait([run.consumer])
        await run.wait()
        run.measure()
        report, error = None, None
        try:
            report = await run.close()
        except PipelineFailed as failed:
            report = failed.report
        except Exception as problem:
            report, error = getattr(problem, "report", None), pack_error(problem)
        ended = Ended(tuple(run.warnings), error=error)
        if report is not None:
            events = report.events
            ended = ended._replace(
                findings=pack(report.findings),
                duration=report.duration,
                recording=pack(events.recording("")) if events is not None else None,
                numbers=run.feed.numbers if events is not None else {},
            )
        # Only now: `listen` is called by another thread.
        self._ended = ended
        self._finished.set()
        run.urgent.set()
        run.news.set()

    def deal(self, turn: int, data: bytes, references: list[Any], starved: bool) -> None:
        """Take inputs; `starved` says that there are no more for now, if this is the latest `turn`.

        Args:
            turn: counts the calls.
            data: the pickle of a list of `Dealt`.
            references: the values of those that have none, in their order.
            starved: see above.
        """
        run = self._run
        assert run is not None
        beside = iter(references)
        inputs: list[Dealt] = [
            dealt if dealt.value is not None else dealt._replace(value=next(beside))
            for dealt in unpack(data)
        ]
        with self._lock:
            run.feed.queue.extend(inputs)
            if turn > self._turn:
                self._turn, run.feed.starved = turn, starved
        run.feed.low = len(run.feed.queue) // 2
        if inputs:
            run.is_hungry = False
        self._look()

    def give_back(self, count: int) -> None:
        """Return up to `count` inputs that have not begun, those that came last."""
        run = self._run
        assert run is not None
        for _ in range(count):
            try:
                self._returned.append(run.feed.queue.pop().number)
            except IndexError:
                break
        run.urgent.set()
        run.news.set()

    def stop(self, how: str) -> None:
        """End the run: ``"finish"`` when all is done, ``"halt"`` after what is in work, ``"cancel"`` at once."""
        run = self._run
        if run is None or self._thread is None:
            return
        if how == "finish":
            run.feed.closing = True
            self._look()
        elif how == "halt":
            run.loop.call_soon_threadsafe(run._halt)
        else:
            run.cancel()
            self._finished.wait(10.0)

    def _look(self) -> None:
        run = self._run
        assert run is not None
        with contextlib.suppress(RuntimeError):
            run.loop.call_soon_threadsafe(run.feed.look)

    def listen(self) -> bytes:
        """Wait until there is something to say, and say it: the pickle of `News`."""
        # Ray would look at every tuple in it on its own.
        return pickle.dumps(self._listen(), pickle.HIGHEST_PROTOCOL)

    def _listen(self) -> News:
        run = self._run
        assert run is not None
        patience = perf_counter() + _PATIENCE
        while True:
            run.news.clear()
            if self._ended is not None or self._returned or run.is_hungry or run.broken:
                break
            now = perf_counter()
            if run.ended_inputs:
                due = self._told + _INTERVAL
                if now >= due:
                    break
                run.urgent.wait(due - now)
            elif now >= patience:
                break
            else:
                run.news.wait(patience - now)
        run.urgent.clear()
        run.is_hungry = False
        self._told = perf_counter()
        # Whatever comes from here on is told the next time; the end comes after everything else.
        ended = self._ended
        pulled = run.feed.pulled
        closed = []
        while run.ended_inputs:
            origin, results, failures = run.ended_inputs.popleft()
            closed.append(self._told_of(run, origin, results, failures))
        returned = []
        while self._returned:
            returned.append(self._returned.popleft())
        broken = []
        while run.broken:
            broken.append(_broken(run.broken.popleft()))
        if ended is not None:
            broken += map(_broken, run.leftover())
        measured = None
        if run.measures != self._measures:
            self._measures, measured = run.measures, run.measured
        return News(
            tuple(closed), tuple(broken), tuple(returned), pulled, run.outputs, measured, ended
        )

    def _told_of(
        self, run: NodeRun, origin: Input, results: list[_Result], failures: list[_Failure]
    ) -> Closed:
        outputs, broken = [], [_broken(failure) for failure in failures]
        for members, value in results:
            try:
                data = value.data if type(value) is Packed else pack_result(value)
                outputs.append(Output(members, data))
            except NotPicklable as error:
                last = run.pipeline.stages[-1].name
                broken.append(Broken(members, last, pack_error(error), 1))
        arrived = 0 if run.wants else origin.outputs
        number = run.feed.numbers[origin.index]
        return Closed(number, origin.state, arrived, tuple(outputs), tuple(broken))


def _broken(failure: _Failure) -> Broken:
    members, stage, error, attempts = failure
    return Broken(members, stage, pack_error(error), attempts)
