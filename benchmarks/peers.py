"""The same work through other libraries. Each is optional: a missing one is skipped and said so.

Every peer is used as its own documentation shows, with the pools warm where it can keep one.
"""

import asyncio
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from contextlib import ExitStack, contextmanager
from typing import Any

from benchmarks.byhand import process_pool, thread_pool, warm_up
from benchmarks.harness import Missing, cores

Stage = tuple[Callable[..., Any], int]
MakeItems = Callable[[int], Iterable[Any]]


def need(module: str) -> Any:
    """Import a peer, or say that it is missing."""
    try:
        return __import__(module, fromlist=["_"])
    except ImportError as error:
        raise Missing(str(error)) from error


def spdl_stages(
    make_items: MakeItems, *stages: Stage, pool: Callable[[], Executor] | None = None
) -> Callable[[int], Any]:
    """Return a contestant: SPDL's pipeline, on its loop and threads or on the pool given."""

    @contextmanager
    def enter(count: int) -> Iterator[Callable[[], list[Any]]]:
        spdl = need("spdl.pipeline")
        items = make_items(count)
        with ExitStack() as stack:
            executor = None
            if pool is not None:
                executor = stack.enter_context(pool())
                warm_up(executor, stages[0][0], items)

            def run() -> list[Any]:
                builder = spdl.PipelineBuilder().add_source(items)
                for function, width in stages:
                    builder = builder.pipe(function, concurrency=width, executor=executor)
                pipeline = builder.add_sink(2 * stages[-1][1]).build(num_threads=cores())
                with pipeline.auto_stop():
                    return list(pipeline.get_iterator(timeout=60))

            yield run

    return enter


def spdl_mixed(make_items: MakeItems, wait: Stage, burn: Any, native: Any) -> Callable[[int], Any]:
    """Return a contestant: SPDL over loop, processes and threads."""

    @contextmanager
    def enter(count: int) -> Iterator[Callable[[], list[Any]]]:
        spdl = need("spdl.pipeline")
        items = make_items(count)
        with process_pool() as processes, thread_pool() as threads:
            warm_up(processes, burn, items)

            def run() -> list[Any]:
                pipeline = (
                    spdl.PipelineBuilder()
                    .add_source(items)
                    .pipe(wait[0], concurrency=wait[1])
                    .pipe(burn, concurrency=2 * cores(), executor=processes)
                    .pipe(native, concurrency=cores(), executor=threads)
                    .add_sink(64)
                    .build(num_threads=cores())
                )
                with pipeline.auto_stop():
                    return list(pipeline.get_iterator(timeout=60))

            yield run

    return enter


def aiostream_stages(make_items: MakeItems, *stages: Stage) -> Callable[[int], Any]:
    """Return a contestant: `aiostream.stream.map`, results as they come."""

    @contextmanager
    def enter(count: int) -> Iterator[Callable[[], list[Any]]]:
        stream = need("aiostream").stream
        items = make_items(count)

        async def main() -> list[Any]:
            flow = stream.iterate(items)
            for function, width in stages:
                flow = stream.map(flow, function, ordered=False, task_limit=width)
            return await stream.list(flow)

        yield lambda: asyncio.run(main())

    return enter


def streamable_stages(
    make_items: MakeItems, *stages: Stage, pool: Callable[[], Executor] | None = None
) -> Callable[[int], Any]:
    """Return a contestant: streamable, results as they come."""

    @contextmanager
    def enter(count: int) -> Iterator[Callable[[], list[Any]]]:
        stream = need("streamable").stream
        items = make_items(count)
        with ExitStack() as stack:
            executor = None
            if pool is not None:
                executor = stack.enter_context(pool())
                warm_up(executor, stages[0][0], items)

            def run() -> list[Any]:
                flow = stream(items)
                for function, width in stages:
                    flow = flow.map(function, concurrency=executor or width, as_completed=True)
                return list(flow)

            yield run

    return enter


def mpire_map(make_items: MakeItems, function: Callable[[Any], Any]) -> Callable[[int], Any]:
    """Return a contestant: an mpire pool that is kept alive, with its own choice of chunks."""

    @contextmanager
    def enter(count: int) -> Iterator[Callable[[], list[Any]]]:
        mpire = need("mpire")
        items = make_items(count)
        with mpire.WorkerPool(n_jobs=cores(), start_method="forkserver", keep_alive=True) as pool:
            # mpire unpacks tuples and arrays; bytes and ints arrive as they are.
            list(pool.imap_unordered(function, items[: 16 * cores()]))  # type: ignore[index]
            yield lambda: list(pool.imap_unordered(function, items, iterable_len=count))

    return enter
