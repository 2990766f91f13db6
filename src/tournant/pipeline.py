"""Pipeline: the immutable description of what happens to each item, and the ways to run it."""

from __future__ import annotations

import copy
from collections.abc import AsyncIterable, Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Literal

from tournant import stages as kinds
from tournant import sync
from tournant._pipeline_checks import check_description
from tournant.errors import short
from tournant.placement import nested_now, placed
from tournant.policies import PerWorker, Retry
from tournant.stages import Cost, Placement, Stage

if TYPE_CHECKING:
    from tournant.background import BackgroundRun
    from tournant.cluster.settings import Ray
    from tournant.handle import RunHandle, Watched
    from tournant.ledger import Ledger
    from tournant.limits.adaptive import Adaptive
    from tournant.limits.rate import RateLimit
    from tournant.report import Report

OnError = Literal["stop", "skip"]


class Pipeline:
    """A description of a pipeline: a source and the stages that its items go through.

    Frozen: every method returns a new pipeline, so one can be kept, shared, extended and run again. What can't work is refused
    when a stage is added, with `InvalidPipeline`.

    Args:
        source: an iterable or async iterable of items, or a callable that returns one (for sources that can be
            iterated over only once: it is called for each run). An iterable that is no builtin sequence is advanced on a thread of
            its own, so it may block.
        key: callable that names an input. Default: the input itself if it is text or a path, else its position.
        fingerprint: callable that tells two states of an input apart (a hash; size and time of change). With a ledger, an
            input runs again when its fingerprint has changed.
        ledger: see `Ledger`; makes runs resumable.
        version: of what the pipeline computes; with a ledger, another version runs every input again. Default "".
        on_error: ``"stop"`` (default): when an item has failed for good nothing new starts, what is in flight ends, and
            `PipelineFailed` is raised. ``"skip"``: failures are recorded and the run goes on.
        max_failures: with ``"skip"``, a count (int) or a share of the inputs (float below 1) of failed inputs
            beyond which the run stops with `TooManyFailures`. Default: any number.
        memory_limit: bytes (int, or text such as ``"512MiB"``) that queued and in-flight items together stay below;
            one item may always pass. Default: channels are bounded by items only.
        stall_after: seconds without any movement after which a warning says which stage waits for what. Default 30, or
            the environment's ``TOURNANT_STALL_AFTER``.

    Raises:
        InvalidPipeline: an argument can't be as it was given.
    """

    __slots__ = (
        "fingerprint", "key", "ledger", "max_failures", "memory_limit", "on_error", "source",
        "source_is_factory", "stages", "stall_after", "version",
    )  # fmt: skip

    def __init__(
        self,
        source: Iterable[Any]
        | AsyncIterable[Any]
        | Callable[[], Iterable[Any] | AsyncIterable[Any]],
        *,
        key: Callable[[Any], Any] | None = None,
        fingerprint: Callable[[Any], Any] | None = None,
        ledger: Ledger | None = None,
        version: str = "",
        on_error: OnError = "stop",
        max_failures: int | float | None = None,
        memory_limit: int | str | None = None,
        stall_after: float | None = None,
    ) -> None:
        factory = check_description(
            source, key, fingerprint, ledger, version, on_error, max_failures, stall_after
        )
        if memory_limit is not None:
            from tournant.engine.budget import parse_bytes

            memory_limit = parse_bytes(memory_limit)
        set_ = object.__setattr__
        set_(self, "source", source)
        set_(self, "source_is_factory", factory)
        set_(self, "key", key)
        set_(self, "fingerprint", fingerprint)
        set_(self, "ledger", ledger)
        set_(self, "version", version)
        set_(self, "on_error", on_error)
        set_(self, "max_failures", max_failures)
        set_(self, "memory_limit", memory_limit)
        set_(self, "stall_after", stall_after)
        set_(self, "stages", ())

    source: Any
    source_is_factory: bool
    key: Callable[[Any], Any] | None
    fingerprint: Callable[[Any], Any] | None
    ledger: Ledger | None
    version: str
    on_error: OnError
    max_failures: int | float | None
    memory_limit: int | None
    stall_after: float | None
    stages: tuple[Stage, ...]

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"a Pipeline is frozen: build a new one instead of setting {name!r}")

    __delattr__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        parts = [f"Pipeline({short(self.source, 40)})"]
        parts += [
            f".{stage.kind}({stage.name}{f', on={stage.on!r}' if stage.kind in kinds.CALLING else ''})"
            for stage in self.stages
        ]
        return "".join(parts)

    def _with(self, stage: Stage) -> Pipeline:
        new = copy.copy(self)
        object.__setattr__(new, "stages", (*self.stages, kinds.check_place(self.stages, stage)))
        return new

    def __copy__(self) -> Pipeline:
        new = object.__new__(Pipeline)
        for name in Pipeline.__slots__:
            object.__setattr__(new, name, getattr(self, name))
        return new

    # Stages.

    def map(
        self,
        fn: Callable[..., Any],
        *,
        on: Placement | None = None,
        concurrency: int | Adaptive | None = None,
        limit: RateLimit | None = None,
        cost: Cost | None = None,
        max_workers: int | None = None,
        blocking: bool = False,
        retry: Retry | None = None,
        timeout: float | None = None,
        on_error: OnError | None = None,
        state: PerWorker | None = None,
        name: str | None = None,
    ) -> Pipeline:
        """Add a stage that makes one result of each item.

        Args:
            fn: called with the item (and the worker's state, if there is one).
            on: ``"loop"`` (default and only choice for ``async def``), ``"threads"`` (default for ``def``; for
                native code that releases the GIL), ``"processes"`` (for pure-Python work), ``"auto"`` (threads, and processes as soon as
                it shows that threads don't scale), also ``"loop"`` for a plain function that takes microseconds.
            concurrency: calls at once, for loop stages (default 64) and ``blocking`` ones: a number, or a
                `tournant.limits.Adaptive` that finds it.
            limit: a `tournant.limits.RateLimit` at which calls begin, for the same stages; who shares it shares the rate.
                `tournant.limits.current` gives the callable the admission of its own call, to settle what it really used.
            cost: tokens that a call is expected to use, for a `limit` on tokens: a number, or a callable of what `fn` takes
                (for `map_batches` the list). Default 0.
            max_workers: cap on the workers of a CPU stage. Default: all cores.
            blocking: a thread stage that waits (a synchronous database driver): threads of its own, no core taken.
            retry: see `Retry`. Default: no second attempt.
            timeout: seconds per attempt. A process that overruns is killed; a thread can't be, so its item fails and the thread is
                left behind.
            on_error: ``"stop"`` or ``"skip"`` for this stage. Default: the pipeline's.
            state: see `PerWorker`.
            name: for reports. Default: the callable's name.

        Raises:
            InvalidPipeline: the arguments contradict each other; the message says how to mend it.
        """
        return self._with(
            kinds.calling_stage(
                "map", fn, name=name, on=on, concurrency=concurrency, limit=limit, cost=cost,
                max_workers=max_workers, blocking=blocking, retry=retry, timeout=timeout, on_error=on_error, state=state,
            )
        )  # fmt: skip

    def flat_map(
        self,
        fn: Callable[..., Any],
        *,
        on: Placement | None = None,
        concurrency: int | Adaptive | None = None,
        limit: RateLimit | None = None,
        cost: Cost | None = None,
        max_workers: int | None = None,
        blocking: bool = False,
        retry: Retry | None = None,
        timeout: float | None = None,
        on_error: OnError | None = None,
        state: PerWorker | None = None,
        name: str | None = None,
    ) -> Pipeline:
        """Add a stage that makes any number of results of each item; arguments as for `map`.

        `fn` returns an iterable, or is a generator or async generator whose results flow on while it is still
        producing. With `retry` they flow on when it has ended. After the death of a worker process a generator runs again and
        what it had passed on is skipped, so it must give the same results again.
        """
        return self._with(
            kinds.calling_stage(
                "flat_map", fn, name=name, on=on, concurrency=concurrency, limit=limit, cost=cost,
                max_workers=max_workers, blocking=blocking, retry=retry, timeout=timeout, on_error=on_error, state=state,
            )
        )  # fmt: skip

    def map_batches(
        self,
        fn: Callable[..., Any],
        *,
        size: int = 32,
        max_wait: float = 0.1,
        on: Placement | None = None,
        concurrency: int | Adaptive | None = None,
        limit: RateLimit | None = None,
        cost: Cost | None = None,
        max_workers: int | None = None,
        blocking: bool = False,
        retry: Retry | None = None,
        timeout: float | None = None,
        on_error: OnError | None = None,
        state: PerWorker | None = None,
        name: str | None = None,
    ) -> Pipeline:
        """Add a stage that is called with lists of up to `size` items and returns as many results, in order.

        A batch that raises is tried again as a whole while `retry` allows, then halved until the item that is to blame
        stands alone; the others succeed. Other arguments as for `map`.

        Args:
            fn: called with a list of items; returns one result per item.
            size: items per batch. Default 32.
            max_wait: seconds after which a partial batch goes. Default 0.1.
        """
        return self._with(
            kinds.calling_stage(
                "map_batches", fn, name=name, on=on, concurrency=concurrency, limit=limit, cost=cost,
                max_workers=max_workers, blocking=blocking, retry=retry, timeout=timeout, on_error=on_error, state=state,
                size=size, max_wait=max_wait,
            )
        )  # fmt: skip

    def filter(
        self,
        fn: Callable[..., Any],
        *,
        on: Placement | None = None,
        concurrency: int | Adaptive | None = None,
        limit: RateLimit | None = None,
        cost: Cost | None = None,
        max_workers: int | None = None,
        blocking: bool = False,
        retry: Retry | None = None,
        timeout: float | None = None,
        on_error: OnError | None = None,
        state: PerWorker | None = None,
        name: str | None = None,
    ) -> Pipeline:
        """Add a stage that keeps the items for which `fn` returns something true; arguments as for `map`."""
        return self._with(
            kinds.calling_stage(
                "filter", fn, name=name, on=on, concurrency=concurrency, limit=limit, cost=cost,
                max_workers=max_workers, blocking=blocking, retry=retry, timeout=timeout, on_error=on_error, state=state,
            )
        )  # fmt: skip

    def tap(
        self,
        fn: Callable[..., Any],
        *,
        on: Placement | None = None,
        concurrency: int | Adaptive | None = None,
        limit: RateLimit | None = None,
        cost: Cost | None = None,
        max_workers: int | None = None,
        blocking: bool = False,
        retry: Retry | None = None,
        timeout: float | None = None,
        on_error: OnError | None = None,
        state: PerWorker | None = None,
        name: str | None = None,
    ) -> Pipeline:
        """Add a stage that calls `fn` with each item and passes the item on; arguments as for `map`."""
        return self._with(
            kinds.calling_stage(
                "tap", fn, name=name, on=on, concurrency=concurrency, limit=limit, cost=cost,
                max_workers=max_workers, blocking=blocking, retry=retry, timeout=timeout, on_error=on_error, state=state,
            )
        )  # fmt: skip

    def for_each(
        self,
        fn: Callable[..., Any],
        *,
        on: Placement | None = None,
        concurrency: int | Adaptive | None = None,
        limit: RateLimit | None = None,
        cost: Cost | None = None,
        max_workers: int | None = None,
        blocking: bool = False,
        retry: Retry | None = None,
        timeout: float | None = None,
        on_error: OnError | None = None,
        state: PerWorker | None = None,
        name: str | None = None,
    ) -> Pipeline:
        """Add the sink: `fn` is called with each item; an input is done when it has returned for all its descendants.

        Arguments as for `map`. No stage may follow.
        """
        return self._with(
            kinds.calling_stage(
                "for_each", fn, name=name, on=on, concurrency=concurrency, limit=limit, cost=cost,
                max_workers=max_workers, blocking=blocking, retry=retry, timeout=timeout, on_error=on_error, state=state,
            )
        )  # fmt: skip

    def batch(
        self,
        size: int | None = None,
        *,
        max_wait: float | None = None,
        weight: Callable[[Any], float] | None = None,
        max_weight: float | None = None,
        name: str | None = None,
    ) -> Pipeline:
        """Add a stage that makes lists of items, of whichever comes first.

        A batch that waits for more while the source itself waits (for a window, for memory) goes as it is.

        Args:
            size: items per list.
            max_wait: seconds after a list's first item at which it goes. Default: no limit.
            weight: callable that weighs an item, such as ``len``. It runs on the loop.
            max_weight: a list is sent before an item would take it above this. A heavier item goes alone.
            name: for reports.
        """
        return self._with(kinds.batch_stage(size, max_wait, weight, max_weight, name))

    def unbatch(self, *, name: str | None = None) -> Pipeline:
        """Add a stage that takes the lists of an earlier `batch` apart again.

        A list as long as its batch gives each entry back to its own input, by position; the entries of any other list descend from all
        inputs of the batch.
        """
        return self._with(Stage("unbatch", name or "unbatch"))

    def gather(self, *, name: str | None = None) -> Pipeline:
        """Add a stage that collects all items of one input, in order, into one `Group` (a list with the input's ``key``).

        An input whose fan-out gave nothing makes an empty group. An input of which an item failed makes none.
        """
        return self._with(Stage("gather", name or "gather"))

    def ordered(self, window: int = 1000, *, name: str | None = None) -> Pipeline:
        """Add a stage that puts items back into the source's order. Without it, results come as they finish.

        An input's items are passed on together when all of them are there and all earlier inputs have been passed on or have
        ended.

        Args:
            window: inputs that the source may run ahead of the oldest unfinished one. Separate from any concurrency: a slow
                input holds back results, but not the start of up to `window` others.
        """
        return self._with(kinds.ordered_stage(window, name))

    # Running.

    def run(
        self,
        *,
        inline: bool = False,
        cluster: Ray | str | None = None,
        on_start: Callable[[Watched], None] | None = None,
    ) -> Report:
        """Run to the end, from synchronous code, and return the report. Results that no sink takes are counted and dropped.

        The run has an event loop of its own in a thread of its own, so this works in scripts, notebooks and GUI programs.
        KeyboardInterrupt cancels the run.

        Args:
            inline: run everything in one thread, in order, without the pool; for debuggers and tests.
            cluster: ``"ray"``, ``"ray://HOST:6379"`` or `tournant.cluster.Ray`: run the stages on the nodes of a Ray cluster.
            on_start: called once, on the run's thread, with a `Watched` to watch, drain or cancel the run by.

        Raises:
            PipelineFailed: items failed and the policy was to stop.
            TooManyFailures: more failed than ``max_failures`` allows.
            SourceFailed: the source raised.
            LedgerError: the ledger can't be opened or written.
            ClusterError: the cluster can't be joined, or has no node left to work.
            WouldDeadlock: called on a thread that runs the loop of a run.
        """
        return placed(self, cluster, inline)._run_sync("run", inline, None, on_start)

    async def arun(
        self,
        *,
        inline: bool = False,
        cluster: Ray | str | None = None,
        on_start: Callable[[Watched], None] | None = None,
    ) -> Report:
        """Run to the end on the caller's loop and return the report; see `run`."""
        from tournant.handle import execute

        there = placed(self, cluster, inline)
        return await execute(there, inline=inline, nested=nested_now(), on_start=on_start)

    def collect(self, *, inline: bool = False, cluster: Ray | str | None = None) -> list[Any]:
        """Run to the end and return the list of results; see `run`. With a sink the list is empty."""
        values: list[Any] = []
        placed(self, cluster, inline)._run_sync("collect", inline, values.append, None)
        return values

    async def acollect(
        self, *, inline: bool = False, cluster: Ray | str | None = None
    ) -> list[Any]:
        """Run to the end on the caller's loop and return the list of results; see `run`."""
        from tournant.handle import execute

        values: list[Any] = []
        there = placed(self, cluster, inline)
        await execute(there, inline=inline, nested=nested_now(), collector=values.append)
        return values

    def start(self, *, inline: bool = False, cluster: Ray | str | None = None) -> BackgroundRun:
        """Start to run in the background and return at once, from any code that must not wait: a GUI's event handler, a notebook's cell.

        The run has an event loop of its own in a thread of its own. Ask the `BackgroundRun` for its ``snapshot()`` and whether it is
        ``done``; ``wait()`` gives the report. Results that no sink takes are counted and dropped. Arguments as for `run`.
        """
        from tournant.background import BackgroundRun

        return BackgroundRun(placed(self, cluster, inline), inline=inline, nested=nested_now())

    def open(self, *, inline: bool = False, cluster: Ray | str | None = None) -> RunHandle:
        """Return a run to stream results from: ``async with pipeline.open() as run: async for item in run: ...``."""
        from tournant.handle import RunHandle

        return RunHandle(placed(self, cluster, inline), inline=inline, nested=nested_now())

    def iter(self, *, inline: bool = False, cluster: Ray | str | None = None) -> Iterator[Any]:
        """Iterate over results from synchronous code as they come. Leaving the loop early cancels the run.

        Raises:
            WouldDeadlock: called on a thread that runs the loop of a run.
        """
        from tournant.handle import stream

        sync.refuse_deadlock("pipeline.iter()", "`async with pipeline.open() as run`")
        return stream(placed(self, cluster, inline), inline=inline, nested=nested_now())

    def _run_sync(
        self,
        call: str,
        inline: bool,
        collector: Callable[[Any], None] | None,
        on_start: Callable[[Watched], None] | None,
    ) -> Report:
        from tournant.handle import execute

        sync.refuse_deadlock(f"pipeline.{call}()", f"`await pipeline.a{call}()`")
        nested = nested_now()
        runs: list[Any] = []

        def interrupted() -> bool:
            for run in runs:
                run.cancel()
            return bool(runs)

        return sync.run(
            lambda: execute(
                self,
                inline=inline,
                nested=nested,
                collector=collector,
                on_start=on_start,
                started=runs.append,
            ),
            interrupted,
            here=inline,
        )
