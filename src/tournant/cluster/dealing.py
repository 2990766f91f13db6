"""The nodes as one segment of the driver's run: deals inputs out, takes in what became of them, and deals again what was lost.

Nodes pull: each has a few shards lying ready, and is dealt more when it has begun half of one, so a fast node gets more. An
input is the driver's until a node has reported its end; only then is it counted, and written to the ledger by the engine.
What a lost node had not reported is dealt again. What was lost twice is suspected to have done it: suspects are dealt in
small groups to a node that has nothing else, so the one that kills actors is found, and fails as `WorkerDied`.
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from dataclasses import replace
from itertools import chain
from time import perf_counter
from typing import TYPE_CHECKING, Any

from tournant.cluster import adding, connection
from tournant.cluster.errors import ClusterError, NodesFailed
from tournant.cluster.leases import shared_limits
from tournant.cluster.messages import Broken, Closed, Dealt, Member, News, pack, unpack
from tournant.cluster.worker import Worker, wait_all
from tournant.engine.lineage import ARRIVED, DROPPED, REFUSED, Batch, Input, Item
from tournant.engine.segment import Segment
from tournant.errors import NotPicklable, TournantError, WorkerDied, short
from tournant.sizes import size_of

if TYPE_CHECKING:
    from tournant.cluster.settings import Ray
    from tournant.engine.run import Run
    from tournant.report import Report
    from tournant.stages import Stage

#: Seconds between two looks at the cluster's nodes.
_LOOK = 1.0
#: Inputs above this go through Ray's object store, once, however often they are dealt.
_BY_REFERENCE = 256 * 1024
#: Until the nodes that are there at the start are ready, none gets more inputs per core than this.
_EARLY = 8
#: Seconds for which the first node that is ready spares inputs for the others.
_SPARED = 5.0
#: Parts into which a group of suspects is divided.
_PARTS = 4
#: Times that an input was lost before it may be blamed.
_DEATHS = 3
#: Actors that a node loses in a row, none of them of use, before it is left alone.
_USELESS = 3
#: Seconds that nodes get to end their runs, and to cancel them.
_FAREWELL, _CANCEL = 15.0, 3.0


class RemoteSegment(Segment):
    """The stages that run on the nodes.

    Args:
        run: the driver's run.
        stages: those stages.
        settings: of the cluster.
    """

    on = "cluster"

    def __init__(self, run: Run, stages: tuple[Stage, ...], settings: Ray) -> None:
        super().__init__(run, list(stages), [1] * len(stages))
        self.settings = settings
        self.summed = [adding.SummedStats(stage.name, stage.on) for stage in stages]
        self.stats = list(self.summed)
        run.failures.watch(stages)
        self.sink = stages[-1].kind == "for_each"
        self.wants = False
        #: By number: every input that was dealt and has not ended.
        self.live: dict[int, Item] = {}
        self.workers: list[Worker] = []
        self._again: deque[int] = deque()
        self._suspects: deque[list[int]] = deque()
        self._losses: dict[int, int] = {}
        self._stored: dict[int, Any] = {}
        self._gone: list[Worker] = []
        self._useless: dict[str, int] = {}
        self._names: dict[str, int] = {}
        self._by_name = {stage.name: stage for stage in stages}
        self._changed = asyncio.Event()
        self._stopping: str | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._limits = shared_limits(stages)
        self._limiter: Any = None
        self._ray: Any = None
        self._first_ready: float | None = None
        self._looked = False
        self._since = perf_counter()
        self._cores = 0

    # What the run asks of a segment.

    def capacity(self) -> int:
        """Hold as much as several nodes take at once."""
        return 1024

    def start(self) -> None:
        """Join the cluster and begin to deal."""
        self.wants = self.out is not None or self.run.collector is not None
        self.inbox.on_items = self._changed.set
        self.run.spawn(self._work(), "tournant cluster")

    def halt(self) -> None:
        """Deal no more; what is in work on the nodes ends."""
        super().halt()
        if self._stopping is None:
            self._stopping = "halt"
        self._changed.set()

    def cancel(self) -> None:
        """Give up what the nodes do."""
        self._stopping = "cancel"
        super().halt()
        self._changed.set()

    def idle(self) -> bool:
        """Tell whether no node has anything."""
        return not self.live

    def queued(self) -> int:
        """Count what waits for a node, and what lies on one and has not begun."""
        lying = sum(max(0, worker.queued) for worker in self.workers if worker.ended is None)
        return len(self.inbox.items) + len(self._again) + sum(map(len, self._suspects)) + lying

    def tick(self, now: float) -> None:
        """Nothing here needs it: the nodes fold their own call times."""

    def amend(self, report: Report) -> Report:
        """Add the nodes' cores and recordings to the run's report."""
        report = adding.add_report(report, self.summed, max(1, self._cores))
        ended = [(w.name, w.ended) for w in chain(self._gone, self.workers) if w.ended is not None]
        findings = tuple(finding for _, end in ended for finding in unpack(end.findings))
        report = replace(report, findings=(*report.findings, *findings))
        if report.events is None:
            return report
        nodes = [(n, e.recording, e.numbers) for n, e in ended if e.recording is not None]
        events: Any = adding.SummedEvents(report.events, nodes)
        return replace(report, events=events)

    # Life.

    async def _work(self) -> None:
        try:
            try:
                await self._open()
                await self._deal_until_done()
            except Exception as error:
                self.run._fatal(self._told(error))
            await self._farewell()
        finally:
            await self._leave()
        self.finish()

    async def _open(self) -> None:
        self._ray = await asyncio.to_thread(connection.connect, self.settings)
        pipeline = self.run.pipeline
        try:
            data = pack(
                (tuple(self.stages), pipeline.on_error, pipeline.memory_limit, pipeline.stall_after)
            )
        except Exception as problem:
            raise ClusterError(
                f"the pipeline can't be sent to the nodes ({type(problem).__name__}: {problem}). Make the stages' callables close over "
                "nothing that can't be pickled, and build connections, locks and models on the node with state=tn.PerWorker(factory)"
            ) from problem
        self._description = await asyncio.to_thread(self._ray.put, data)
        if self._limits:
            self._limiter = await asyncio.to_thread(
                connection.start_limiter, self._ray, self._limits
            )
        self._since = perf_counter()
        self._tasks.append(self.run.spawn(self._watch(), "tournant nodes"))

    async def _deal_until_done(self) -> None:
        while not self._over():
            self._changed.clear()
            if self._stopping is None:
                await self._deal()
                if self._over():
                    break
            else:
                self._tell_to_stop()
            await self._changed.wait()

    def _over(self) -> bool:
        if self._stopping == "cancel":
            return True
        if self._stopping == "halt":
            # What was begun ends; what a node had not begun it never reports.
            return all(w.ended is not None or not w.ready for w in self.workers)
        return (
            self.inbox.closed
            and not self.inbox.items
            and not self.live
            and not self._again
            and not self._suspects
        )

    async def _farewell(self) -> None:
        """Have the nodes end their runs, close their workers' state and report."""
        if self._stopping == "cancel" or self._ray is None:
            return
        how = "halt" if self._stopping else "finish"
        waiting = [worker for worker in self.workers if worker.ready and worker.ended is None]
        for worker in waiting:
            worker.stop(how)
        due = perf_counter() + _FAREWELL
        while any(w.ended is None for w in waiting if w in self.workers):
            left = due - perf_counter()
            if left <= 0:
                self.run.warnings.append(
                    f"nodes did not end their runs within {_FAREWELL:.0f} seconds and were killed"
                )
                break
            self._changed.clear()
            with_timeout = asyncio.ensure_future(self._changed.wait())
            await asyncio.wait([with_timeout], timeout=left)
            with_timeout.cancel()
        said = [
            (worker.name, worker.ended.warnings)
            for worker in (*self._gone, *self.workers)
            if worker.ended is not None
        ]
        self.run.warnings += adding.add_warnings(said)
        self._sum()

    async def _leave(self) -> None:
        """Kill the actors and leave the cluster; also when the run was cancelled."""
        for task in self._tasks:
            self.run.dismiss(task)
        ray, self._ray = self._ray, None
        if ray is None:
            return
        workers = list(self.workers)
        if self._stopping == "cancel" or self.run.cancelled:
            await wait_all([w.stop("cancel") for w in workers if w.ready], _CANCEL)
        for worker in workers:
            worker.kill(ray)
        if self._limiter is not None:
            ray.kill(self._limiter)
        await asyncio.to_thread(connection.disconnect, ray)

    def _told(self, error: Exception) -> Exception:
        if isinstance(error, TournantError):
            return error
        return connection.unavailable(error, "the cluster can't go on with the run")

    # Nodes.

    async def _watch(self) -> None:
        """Have every node at work that may be, from now to the end."""
        while self._stopping is None:
            try:
                nodes = await asyncio.to_thread(connection.nodes, self._ray, self.settings)
            except Exception as error:
                self._fail(self._told(error))
                return
            busy = {worker.node.id for worker in self.workers}
            for node in nodes:
                if self.settings.nodes is not None and len(self.workers) >= self.settings.nodes:
                    break
                if node.id not in busy and self._useless.get(node.id, 0) < _USELESS:
                    count = self._names[node.name] = self._names.get(node.name, 0) + 1
                    name = node.name if count == 1 else f"{node.name} ({count})"
                    actor = await asyncio.to_thread(
                        connection.start_node, self._ray, self.settings, node, sys.path
                    )
                    worker = Worker(node, name, actor, self.settings.shard)
                    self.workers.append(worker)
                    self._tasks.append(
                        self.run.spawn(self._attend(worker), f"tournant node {name}")
                    )
            self._looked = True
            if any(worker.ready for worker in self.workers):
                self._since = perf_counter()
            elif perf_counter() - self._since > self.settings.start_timeout:
                self._give_up(nodes)
                return
            await asyncio.sleep(_LOOK)

    def _give_up(self, nodes: list[Any]) -> None:
        cores = f"{self.settings.cpus or 1} core(s)"
        if self.settings.resources:
            cores += f" and {dict(self.settings.resources)}"
        if not nodes:
            said = f"the cluster has no living node with {cores}; `ray status` shows what there is"
        elif all(self._useless.get(node.id, 0) >= _USELESS for node in nodes):
            said = (
                f"on each of {len(nodes)} node(s) the actor died {_USELESS} times without finishing an input; `ray logs` tells why, "
                "often it is memory: give fewer cores with tn.cluster.Ray(cpus=...)"
            )
        else:
            said = (
                f"none of {len(nodes)} node(s) was ready within {self.settings.start_timeout:.0f} seconds; their cores may be "
                "taken by other jobs (see `ray status`): ask for fewer with tn.cluster.Ray(cpus=...), or wait longer with start_timeout="
            )
        self._fail(NodesFailed(said))

    def _fail(self, error: Exception) -> None:
        self.run._fatal(error)
        self._changed.set()

    async def _attend(self, worker: Worker) -> None:
        """Listen to one node until its run ends or it is lost."""
        settings = self.settings
        try:
            await worker.begin(
                self._description, self.wants, self._limits, self._limiter, settings.start_timeout
            )
            self._first_ready = self._first_ready or perf_counter()
            self._cores = max(self._cores, sum(w.node.cores for w in self.workers if w.ready))
            self._changed.set()
            while worker.ended is None:
                await self._take(worker, await worker.listen(settings.lost_after))
                self._changed.set()
            if self._stopping is None and worker.inflight:
                self._lost(worker, "ended its run before it was told to")
        except TimeoutError:
            if worker.ready:
                why = f"gave no answer for {settings.lost_after:.0f} seconds"
            else:
                why = f"was not ready within {settings.start_timeout:.0f} seconds; its cores may be taken"
            self._lost(worker, why)
        except TournantError as error:
            self._lost(worker, "can't work")
            self._fail(error)
        except Exception as error:
            if not self._is_rays(error):
                raise
            self._lost(worker, f"is lost ({connection._first_line(error)})")

    def _is_rays(self, error: Exception) -> bool:
        return self._ray is None or isinstance(error, self._ray.exceptions.RayError)

    def _lost(self, worker: Worker, why: str) -> None:
        """A node's actor is no more: what it had not reported runs again."""
        if worker not in self.workers:
            return
        self.workers.remove(worker)
        self._gone.append(worker)
        if self._ray is not None:
            worker.kill(self._ray)
            if self._limiter is not None:
                self._limiter.gone.remote(worker.name)
        numbers = [number for number in worker.inflight if number in self.live]
        if self._stopping is None:
            again = f"{len(numbers)} input(s) that it had not reported ran again"
            self.run.warnings.append(
                f"the node {worker.name} {why}; {again if numbers else 'it had reported everything'}"
            )
        node = worker.node.id
        self._useless[node] = 0 if worker.useful else self._useless.get(node, 0) + 1
        for number in numbers:
            self._losses[number] = self._losses.get(number, 0) + 1
        suspects = [number for number in numbers if self._losses[number] > 1]
        known = set(suspects)
        self._again.extendleft(reversed([number for number in numbers if number not in known]))
        if worker.probing and len(suspects) == 1 and self._losses[suspects[0]] >= _DEATHS:
            self._blame(suspects[0], worker, why)
        elif suspects:
            size = max(1, -(-len(suspects) // _PARTS))
            self._suspects.extend(suspects[n : n + size] for n in range(0, len(suspects), size))
        self._sum()
        self._changed.set()

    def _blame(self, number: int, worker: Worker, why: str) -> None:
        item = self.live.pop(number)
        self._stored.pop(number, None)
        error = WorkerDied(
            f"the actor on {worker.name} {why} while it had this input and no other, as had the actors that had it before "
            f"({self._losses.pop(number)} in all); it may need more memory than the node has, or crash a native library"
        )
        self.run.fail(item, self.stages[0], error, _DEATHS)

    # Dealing.

    async def _deal(self) -> None:
        """Give every node what it has room for."""
        ready = [worker for worker in self.workers if worker.ready and worker.ended is None]
        self._probe(ready)
        early = self._early()
        while True:
            free = [w for w in ready if not w.probing and not w.reserved and w in self.workers]
            rooms = [
                (w.queued / w.shard, n, w) for n, w in enumerate(free) if self._room(w, early) > 0
            ]
            if not rooms or not (self._again or self.inbox.items):
                break
            worker = min(rooms)[2]
            await self._send(worker, min(worker.shard, self._room(worker, early)))
        if self.inbox.writers or self.inbox.room_wanted:
            self.inbox.removed()
        self._even_out(ready)
        dry = not self._again and not self.inbox.items
        starved = dry and (self.run.source.waiting or self.run.source.done)
        for worker in ready:
            if worker.starved != (starved or worker.probing) and worker in self.workers:
                worker.deal([], starved or worker.probing)

    def _early(self) -> bool:
        """Tell whether inputs are to be spared for nodes that are not ready yet."""
        if self._looked and all(worker.ready for worker in self.workers):
            return False
        return self._first_ready is None or perf_counter() - self._first_ready < _SPARED

    def _room(self, worker: Worker, early: bool) -> int:
        room = worker.room
        return min(room, _EARLY * worker.node.cores - len(worker.inflight)) if early else room

    async def _send(self, worker: Worker, count: int) -> None:
        inputs: list[Dealt] = []
        while len(inputs) < count:
            if self._again:
                number = self._again.popleft()
                item = self.live[number]
            elif self.inbox.items:
                item = self.inbox.items.popleft()
                assert isinstance(item.origin, Input)
                number = item.origin.index
                self.live[number] = item
            else:
                break
            dealt = await self._dealt(number, item)
            if dealt is not None:
                inputs.append(dealt)
        if inputs and worker in self.workers:
            worker.deal(inputs, False)
        else:
            self._again.extendleft(dealt.number for dealt in reversed(inputs))

    async def _dealt(self, number: int, item: Item) -> Dealt | None:
        key = item.origin.key
        if number in self._stored:
            return Dealt(number, key, self._stored[number])
        try:
            large = size_of(item.value) > _BY_REFERENCE
            data = await asyncio.to_thread(pack, item.value) if large else pack(item.value)
        except Exception as problem:
            error = NotPicklable(
                f"the input {short(item.value)} can't be sent to a node ({type(problem).__name__}: {problem}); give plain data, or "
                "better paths and addresses, and open them in the first stage"
            )
            error.__cause__ = problem
            del self.live[number]
            self.run.fail(item, self.stages[0], error, 1)
            return None
        if len(data) <= _BY_REFERENCE:
            return Dealt(number, key, data)
        # From here on the object store has it, which can spill it to disk.
        self._stored[number] = await asyncio.to_thread(self._ray.put, data)
        item.value = None
        return Dealt(number, key, self._stored[number])

    def _probe(self, ready: list[Worker]) -> None:
        """Give suspects to nodes that have nothing else."""
        for worker in ready:
            if worker.probing and not worker.inflight:
                worker.probing = False
        while self._suspects:
            free = [w for w in ready if not w.inflight and w in self.workers]
            if not free:
                break
            group = [number for number in self._suspects.popleft() if number in self.live]
            if not group:
                continue
            worker = free[0]
            worker.probing, worker.reserved = True, False
            inputs = [
                Dealt(n, self.live[n].origin.key, self._stored.get(n) or pack(self.live[n].value))
                for n in group
            ]
            worker.deal(inputs, True)
        if not self._suspects:
            for worker in ready:
                worker.reserved = False
        elif not any(worker.probing or worker.reserved for worker in ready) and ready:
            min(ready, key=lambda w: len(w.inflight)).reserved = True

    def _even_out(self, ready: list[Worker]) -> None:
        """Where nothing is left to deal, take from a node that has much lying for one that has nothing."""
        if self._again or self.inbox.items or self._suspects or not self.inbox.closed:
            return
        able = [w for w in ready if not w.probing and w in self.workers]
        hungry = [w for w in able if w.queued <= 0]
        rich = [w for w in able if w.queued > 1 and not w.asked]
        if hungry and rich:
            richest = max(rich, key=lambda w: w.queued)
            richest.give_back(richest.queued // 2)

    # What comes back.

    async def _take(self, worker: Worker, news: News) -> None:
        self._again.extend(number for number in news.returned if number in self.live)
        if not self.wants:
            self.run.outputs += news.outputs - worker.outputs
            worker.outputs = news.outputs
        # Before the inputs that they belong to end.
        for broken in news.broken:
            if any(member.number in self.live for member in broken.members):
                self._break(broken)
        for closed in news.closed:
            if closed.number not in worker.inflight:
                continue
            if self.out is not None and self.out.full():
                await self.out.wait_room()
            if closed.number in self.live:
                self._settle(closed)
            worker.inflight.pop(closed.number, None)
        if news.measured is not None or news.ended is not None:
            self._sum()
        if news.ended is not None and news.ended.error is not None:
            self._fail(unpack(news.ended.error))

    def _settle(self, closed: Closed) -> None:
        """Count an input as ended, after what came of it has been passed on."""
        run = self.run
        item = self.live[closed.number]
        origin = item.origin
        assert isinstance(origin, Input)
        for broken in closed.broken:
            self._break(broken)
        for members, data in closed.outputs:
            try:
                value = unpack(data)
            except Exception as problem:
                run.fail(self._child(members, None), self.stages[-1], _unreadable(problem), 1)
                continue
            child = self._child(members, value)
            if self.out is not None:
                self.out.items.append(child)
                self.out.added()
            else:
                run.arrive(child)
        state = closed.state & (DROPPED | REFUSED | (0 if self.wants else ARRIVED))
        # What the node counted, but for the one that `end` is going to count.
        origin.outputs += closed.arrived - (1 if state & ARRIVED else 0)
        del self.live[closed.number]
        self._stored.pop(closed.number, None)
        self._losses.pop(closed.number, None)
        run.end_item(item, state)

    def _break(self, broken: Broken) -> None:
        child = self._child(broken.members, None)
        try:
            error = unpack(broken.error)
        except Exception as problem:
            error = _unreadable(problem)
        self.run.fail(child, self._by_name[broken.stage], error, broken.attempts)

    def _child(self, members: tuple[Member, ...], value: Any) -> Item:
        """Return an item that descends from those of `members` that have not ended."""
        rows = []
        for member in members:
            item = self.live.get(member.number)
            if item is not None:
                assert isinstance(item.origin, Input)
                item.origin.pending += 1
                rows.append(Item(None, item.origin, member.pos))
        if len(members) == 1:
            rows[0].value = value
            child = rows[0]
        else:
            child = Item(value, Batch(rows))
        if self.run.budget is not None:
            self.run.enter(child)
        return child

    def _sum(self) -> None:
        for n, stats in enumerate(self.summed):
            stats.add_up(
                [w.measured[n] for w in chain(self._gone, self.workers) if w.measured],
                [w.measured[n] for w in self.workers if w.measured and w.ended is None],
            )

    def _tell_to_stop(self) -> None:
        for worker in self.workers:
            if worker.ready and worker.ended is None and not worker.stopped:
                worker.stop("halt")


def _unreadable(problem: Exception) -> NotPicklable:
    error = NotPicklable(
        f"a result can't be read at the driver ({type(problem).__name__}: {problem}); its class has to be importable here too"
    )
    error.__cause__ = problem
    return error
