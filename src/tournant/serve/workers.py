"""The embedding workers: processes with one model and one core each, which may die at any time.

They are lanes of a pool of their own. Those of the shared pool belong to whichever run needs them most, and a question that
somebody waits for must not queue behind a run. A process rather than a thread, since whatever kills it (the out-of-memory
killer, a fault in native code) then takes one batch with it and not the server.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Any

from tournant.errors import WorkerDied
from tournant.ingest.stages import make_embedder
from tournant.policies import PerWorker
from tournant.pool.lanes import Lane, Pool, Spec, World
from tournant.pool.steps import Failed, Outbox, Part

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from tournant.ingest.embedders.base import Embedder

_FOR_EVER = 3e7  # seconds that an idle worker is kept: a year
_END = 5.0


class Workers:
    """Embedding processes, each working on one batch at a time. For one event loop.

    Args:
        spec: The embedder, as in ``tournant.ingest.embedders``.
        count: How many processes.

    Attributes:
        count: How many processes.
        free: How many can take a batch now. One that has died is not free before its successor is ready.
        died: How many have died so far.
        on_free: Called when `free` has grown.
    """

    def __init__(self, spec: str, count: int) -> None:
        self.count = count
        self.free = 0
        self.died = 0
        self.on_free: Callable[[], None] = _nothing
        self._pool = Pool(count, idle=_FOR_EVER)
        steps = [("map", _embed, PerWorker(partial(make_embedder, spec)))]
        self._spec = Spec(steps, copy_context(), World(), takes_slot=False)
        self._running: set[_Batch] = set()
        self._closed = False

    async def start(self) -> int:
        """Start all processes and load their models; return the length of a vector.

        Raises:
            IngestError: the embedder can't be loaded.
            WorkerDied: a process can't be started, or died while it loaded its model.
        """
        loop = asyncio.get_running_loop()
        batches = [self._submit(["ready"], loop) for _ in range(self.count)]
        try:
            results = await asyncio.gather(*(batch.future for batch in batches))
        except BaseException:
            await self.aclose()
            raise
        self.free = self.count
        return int(results[0].shape[1])

    def run(self, texts: list[str]) -> asyncio.Future[NDArray[np.float32]]:
        """Embed a batch on a free worker. Call it only while one is `free`.

        Returns:
            The future of the vectors, one row a text. It fails with `WorkerDied` when the worker died, and with what the
            embedder raised. A batch that is under way can't be called back.
        """
        self.free -= 1
        batch = self._submit(texts, asyncio.get_running_loop())
        batch.future.add_done_callback(self._ended)
        return batch.future

    def processes(self) -> list[int]:
        """Return the process ids of the workers that live."""
        processes = [getattr(lane, "process", None) for lane in self._pool.lanes()]
        return [process.pid for process in processes if process is not None]

    async def aclose(self) -> None:
        """End the processes. What they work on is lost: close only when nobody waits any more."""
        self._closed = True
        for batch in list(self._running):
            batch.lane.kill(batch)
        await asyncio.to_thread(self._pool.close, _END)

    # Inside

    def _submit(self, texts: list[str], loop: asyncio.AbstractEventLoop) -> _Batch:
        lane = self._pool.lane("processes")
        batch = _Batch(self._spec, texts, loop, lane)
        self._running.add(batch)
        batch.future.add_done_callback(lambda _: self._running.discard(batch))
        lane.submit(batch)
        return batch

    def _ended(self, future: asyncio.Future[Any]) -> None:
        if self._closed:
            return
        if not future.cancelled() and isinstance(future.exception(), WorkerDied):
            self.died += 1
            self._succeed()
        else:
            self._freed()

    def _succeed(self) -> None:
        """Start the successor of a worker that has died, and count it as free once its model is loaded."""
        # The lane that was put back last is taken first, so this reaches the one whose process is gone.
        batch = self._submit(["ready"], asyncio.get_running_loop())
        batch.future.add_done_callback(self._ready)

    def _ready(self, future: asyncio.Future[Any]) -> None:
        # Where the successor could not start, the next batch tries again, and tells its callers what is wrong.
        if not future.cancelled():
            future.exception()
        if not self._closed:
            self._freed()

    def _freed(self) -> None:
        self.free += 1
        self.on_free()


class _Batch:
    """A batch as a lane knows it: a `tournant.pool.lanes.Job` whose result becomes a future on the loop."""

    def __init__(
        self, spec: Spec, texts: list[str], loop: asyncio.AbstractEventLoop, lane: Lane
    ) -> None:
        self.spec = spec
        self.values: list[Any] = [texts]
        self.skip = 0
        self.hold = self.announce = self.abandoned = False
        self.outbox: Outbox | None = None
        self.lane = lane
        self.future: asyncio.Future[Any] = loop.create_future()
        self._loop = loop
        self._result: Any = None

    def began(self) -> None:
        pass

    def part(self, part: Part) -> None:
        if part.values:
            self._result = part.values[0]
        if part.last:
            result = self._result
            self._tell(result.error if type(result) is Failed else None, result)

    def wanted(self) -> bool:
        return True

    def left(self) -> None:
        self._tell(WorkerDied("the embedding was given up"))

    def failed(self, error: BaseException) -> None:
        # Otherwise the process would remember for ever that the model could not be loaded.
        self.lane.forget(self.spec)
        self._tell(error)

    def died(self, how: str) -> None:
        self._tell(WorkerDied(f"a process that embeds died in the middle of a batch ({how})"))

    def _tell(self, error: BaseException | None, result: Any = None) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._resolve, error, result)

    def _resolve(self, error: BaseException | None, result: Any) -> None:
        if self.future.done():
            return
        if error is None:
            self.future.set_result(result)
        else:
            self.future.set_exception(error)


def _embed(texts: Sequence[str], embedder: Embedder) -> NDArray[np.float32]:
    """Embed one batch; runs in the worker."""
    return embedder.embed(texts)


def _nothing() -> None:
    pass
