"""One run through a slow sink, in a process of its own: `python -m benchmarks.memory WHO COUNT`.

Prints by how many MiB the resident memory grew above what it was after a run of a hundred items.
Every item carries 1 KiB, so whatever is buffered without a bound shows.
"""

import asyncio
import sys
import threading
from collections.abc import Callable

from benchmarks import work

MIB = 1 << 20


def resident() -> int:
    """Return the resident memory of this process, in bytes."""
    with open("/proc/self/statm", encoding="ascii") as statm:
        return int(statm.read().split()[1]) * 4096


def through_queues(count: int) -> None:
    """Bounded queues by hand."""
    from benchmarks.byhand import queue_pipeline

    async def sink(item: bytes) -> None:
        await work.slow_sink(item)

    asyncio.run(queue_pipeline(range(count), [(work.to_kibibyte, 64), (sink, 64)]))


def through_gather(count: int) -> None:
    """One task an item, all at once: what "just use gather" comes to."""

    async def main() -> None:
        permits = asyncio.Semaphore(64)

        async def one(number: int) -> None:
            item = await work.to_kibibyte(number)
            async with permits:
                await work.slow_sink(item)

        await asyncio.gather(*(one(number) for number in range(count)))

    asyncio.run(main())


def through_tournant(count: int) -> None:
    """The same as a pipeline."""
    import tournant as tn

    report = (
        tn.Pipeline(range(count))
        .map(work.to_kibibyte, concurrency=64)
        .for_each(work.slow_sink, concurrency=64)
        .run()
    )
    if report.done != count:
        raise SystemExit(f"{report.done} of {count} done")


RUNNERS: dict[str, Callable[[int], None]] = {
    "queues": through_queues,
    "gather": through_gather,
    "tournant": through_tournant,
}


def main() -> None:
    """Run once and print the growth."""
    run, count = RUNNERS[sys.argv[1]], int(sys.argv[2])
    run(100)
    before = resident()
    highest = before
    over = threading.Event()

    def watch() -> None:
        nonlocal highest
        while not over.wait(0.02):
            highest = max(highest, resident())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    run(count)
    over.set()
    watcher.join()
    print((highest - before) / MIB)


if __name__ == "__main__":
    main()
