"""The code a good engineer writes without a library: asyncio queues, and `concurrent.futures`.

These are the contestants that matter most. They keep no lineage and no statistics, and they know
their workload: the chunk of 64 was chosen by somebody who measured.
"""

import asyncio
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from multiprocessing import get_context
from typing import Any

from benchmarks.harness import cores

DONE = object()
CHUNK = 64


async def queue_pipeline(
    items: Iterable[Any], stages: list[tuple[Callable[..., Any], int]]
) -> list[Any]:
    """Run `items` through coroutine stages: bounded queues between them, workers on each."""
    queues: list[asyncio.Queue[Any]] = [asyncio.Queue(maxsize=2 * width) for _, width in stages]
    results: list[Any] = []

    async def feed() -> None:
        for item in items:
            await queues[0].put(item)
        await queues[0].put(DONE)

    async def worker(stage: Callable[..., Any], inbox: asyncio.Queue[Any], emit: Any) -> None:
        while True:
            item = await inbox.get()
            if item is DONE:
                inbox.put_nowait(DONE)  # for the next worker: the slot this one took is free
                return
            await emit(await stage(item))

    async def collect(item: Any) -> None:
        results.append(item)

    async def run_stage(position: int) -> None:
        stage, width = stages[position]
        last = position + 1 == len(stages)
        emit = collect if last else queues[position + 1].put
        async with asyncio.TaskGroup() as group:
            for _ in range(width):
                group.create_task(worker(stage, queues[position], emit))
        if not last:
            await queues[position + 1].put(DONE)

    async with asyncio.TaskGroup() as group:
        group.create_task(feed())
        for position in range(len(stages)):
            group.create_task(run_stage(position))
    return results


def asyncio_queues(
    make_items: Callable[[int], Iterable[Any]],
    *stages: tuple[Callable[..., Any], int],
    uvloop: bool = False,
) -> Callable[[int], Any]:
    """Return a contestant: `asyncio.Queue` workers, on the loop of the standard library or on uvloop."""

    @contextmanager
    def enter(count: int) -> Iterator[Callable[[], list[Any]]]:
        factory = None
        if uvloop:
            import uvloop as fast_loop

            factory = fast_loop.new_event_loop
        items = make_items(count)

        def run() -> list[Any]:
            with asyncio.Runner(loop_factory=factory) as runner:
                return runner.run(queue_pipeline(items, list(stages)))

        yield run

    return enter


def thread_pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(cores())


def process_pool() -> ProcessPoolExecutor:
    """Return a pool of one process a core; not forked, since other contestants have threads."""
    return ProcessPoolExecutor(cores(), mp_context=get_context("forkserver"))


def sequential(function: Callable[[Any], Any], make_items: Callable[[int], Iterable[Any]]) -> Any:
    """Return a contestant: a list comprehension on one core."""

    @contextmanager
    def enter(count: int) -> Iterator[Callable[[], list[Any]]]:
        items = make_items(count)
        yield lambda: [function(item) for item in items]

    return enter


def executor_map(
    pool: Callable[[], Executor],
    function: Callable[[Any], Any],
    make_items: Callable[[int], Iterable[Any]],
) -> Any:
    """Return a contestant: `Executor.map` as everybody calls it."""

    @contextmanager
    def enter(count: int) -> Iterator[Callable[[], list[Any]]]:
        items = make_items(count)
        with pool() as executor:
            warm_up(executor, function, items)
            yield lambda: list(executor.map(function, items))

    return enter


def executor_chunks(
    pool: Callable[[], Executor],
    function: Callable[[Any], Any],
    make_items: Callable[[int], Iterable[Any]],
) -> Any:
    """Return a contestant: chunks of 64 through an executor, a bounded number of them under way."""

    @contextmanager
    def enter(count: int) -> Iterator[Callable[[], list[Any]]]:
        items = make_items(count)

        async def main(executor: Executor) -> list[Any]:
            loop = asyncio.get_running_loop()
            source = iter(items)
            results: list[Any] = []

            async def lane() -> None:
                while chunk := list(islice(source, CHUNK)):
                    results.extend(await loop.run_in_executor(executor, run_chunk, function, chunk))

            await asyncio.gather(*(lane() for _ in range(2 * cores())))
            return results

        with pool() as executor:
            warm_up(executor, function, items)
            yield lambda: asyncio.run(main(executor))

    return enter


def bare(
    pool: Callable[[], Executor],
    function: Callable[[Any], Any],
    make_items: Callable[[int], Iterable[Any]],
) -> Any:
    """Return no contestant but a ceiling: every core repeats the call on one item, and nothing moves."""

    @contextmanager
    def enter(count: int) -> Iterator[Callable[[], range]]:
        items = list(make_items(cores()))
        share = -(-count // cores())

        with pool() as executor:
            warm_up(executor, function, items * 16)

            def run() -> range:
                started = [executor.submit(repeat, function, item, share) for item in items]
                for each in started:
                    each.result()
                return range(count)

            yield run

    return enter


def repeat(function: Callable[[Any], Any], item: Any, times: int) -> None:
    for _ in range(times):
        function(item)


def run_chunk(function: Callable[[Any], Any], chunk: list[Any]) -> list[Any]:
    return [function(item) for item in chunk]


def warm_up(executor: Executor, function: Callable[[Any], Any], items: Iterable[Any]) -> None:
    """Make the executor start all its workers and import what they need."""
    list(executor.map(function, list(islice(items, 16 * cores()))))


async def mixed_pipeline(
    items: Iterable[bytes],
    wait: tuple[Callable[..., Any], int],
    burn: Callable[[bytes], bytes],
    native: Callable[[bytes], bytes],
    processes: Executor,
    threads: Executor,
    chunk: int,
) -> list[bytes]:
    """Wait on the loop, burn in processes, hash in threads; `chunk` items a hop."""
    loop = asyncio.get_running_loop()
    waited: asyncio.Queue[Any] = asyncio.Queue(4 * max(chunk, cores()))
    burnt: asyncio.Queue[Any] = asyncio.Queue(4 * cores())
    results: list[bytes] = []
    source = iter(items)

    async def waiter() -> None:
        for item in source:
            await waited.put(await wait[0](item))

    async def take() -> list[bytes]:
        """Return what lies in the queue, up to a chunk; empty at the end."""
        first = await waited.get()
        if first is DONE:
            waited.put_nowait(DONE)
            return []
        batch = [first]
        while len(batch) < chunk and not waited.empty():
            if (item := waited.get_nowait()) is DONE:
                waited.put_nowait(DONE)
                break
            batch.append(item)
        return batch

    async def burner() -> None:
        while batch := await take():
            await burnt.put(await loop.run_in_executor(processes, run_chunk, burn, batch))

    async def hasher() -> None:
        while (batch := await burnt.get()) is not DONE:
            results.extend(await loop.run_in_executor(threads, run_chunk, native, batch))
        burnt.put_nowait(DONE)

    async def stage(
        workers: int, work: Callable[[], Any], after: asyncio.Queue[Any] | None
    ) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(workers):
                group.create_task(work())
        if after is not None:
            await after.put(DONE)

    async with asyncio.TaskGroup() as group:
        group.create_task(stage(wait[1], waiter, waited))
        group.create_task(stage(2 * cores(), burner, burnt))
        group.create_task(stage(cores(), hasher, None))
    return results
