"""What a hit costs: `python -m benchmarks cache [--quick]`.

A hit through `peek` beside a `dict.get`, a hit through `await get` beside awaiting a coroutine that returns at once. All run in loops
of the same form. What is timed is one item.
"""

import asyncio
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks import harness
from benchmarks.harness import Contestant, Result, seconds_per_item

NANO = 1e9
KEYS = 1000
DICT, PEEK, FULL_PEEK = "dict.get", "Cache.peek", "Cache.peek, its memory full"
TRIVIAL, GET, KEYED, LRU = "await trivial()", "await Cache.get", "await Cache.get, key=keyed_by(...)", "lru_cache"  # fmt: skip


def texts() -> list[str]:
    return [f"the text of chunk {number}" for number in range(KEYS)]


async def trivial(x: Any) -> Any:
    return x


def filled(**options: Any) -> Any:
    """Return a cache that holds every text."""
    from tournant.cache import Cache

    cache: Any = Cache(trivial, **options)
    asyncio.run(cache.get_many(texts()))
    return cache


def looked_up(make: Callable[[], Callable[[Any], Any]]) -> Callable[[int], Any]:
    """Return a contestant that calls a function with each text in turn."""

    @contextmanager
    def enter(count: int) -> Iterator[Callable[[], range]]:
        look, keys = make(), texts()

        def call() -> range:
            for _ in range(count // KEYS):
                for key in keys:
                    look(key)
            return range(count)

        yield call

    return enter


def awaited(make: Callable[[], Callable[[Any], Awaitable[Any]]]) -> Callable[[int], Any]:
    """Return a contestant that awaits a coroutine function with each text in turn."""

    @contextmanager
    def enter(count: int) -> Iterator[Callable[[], range]]:
        get, keys = make(), texts()

        async def main() -> range:
            for _ in range(count // KEYS):
                for key in keys:
                    await get(key)
            return range(count)

        yield lambda: asyncio.run(main())

    return enter


def dict_get() -> Callable[[Any], Any]:
    return {text: text for text in texts()}.get


def full_memory() -> Any:
    """Return a cache whose memory is full: it has evicted other values for these."""
    cache = filled(memory=filled().stats().bytes + 100)
    asyncio.run(cache.get_many([f"the text of chunk -{number}" for number in range(KEYS)]))
    asyncio.run(cache.get_many(texts()))
    return cache


def lru_cache() -> Callable[[Any], Any]:
    from functools import lru_cache

    return lru_cache(maxsize=2 * KEYS)(lambda x: x)


def keyed() -> Any:
    from tournant.cache import keyed_by

    return filled(key=keyed_by("minilm", "2", {"pooling": "mean"})).get


def hits(scale: float, runs: int) -> Result:
    """Time hits, and give them as ratios too."""
    contestants = [
        Contestant(DICT, looked_up(dict_get)),
        Contestant(PEEK, looked_up(lambda: filled().peek)),
        Contestant(FULL_PEEK, looked_up(lambda: full_memory().peek)),
        Contestant(LRU, looked_up(lru_cache)),
        Contestant(TRIVIAL, awaited(lambda: trivial)),
        Contestant(GET, awaited(lambda: filled().get)),
        Contestant(KEYED, awaited(keyed)),
    ]
    items = max(1, int(1000 * scale)) * KEYS
    timings = seconds_per_item(contestants, items, runs=runs)
    result = Result(
        "a hit in the cache",
        "ns",
        skipped=timings.skipped,
        targets={PEEK: "3 x dict.get", GET: "2 x await trivial()"},
    )
    result.values = {who: [t * NANO for t in each] for who, each in timings.seconds.items()}
    result.facts = {
        "items": items,
        "cores taken by other programs": timings.others,
        **{
            f"{who} / {base}": round(min(result.values[who]) / min(result.values[base]), 2)
            for who, base in [
                (PEEK, DICT),
                (FULL_PEEK, DICT),
                (LRU, DICT),
                (GET, TRIVIAL),
                (KEYED, TRIVIAL),
            ]
            if who in result.values and base in result.values
        },
    }
    return result


def vectors(scale: float, runs: int) -> Result:
    """Time 256-number vectors through the SQLite store, in batches of 256."""
    count = max(1, int(64 * scale)) * 256
    names = [f"text {number}" for number in range(count)]

    def contestant(read: bool) -> Callable[[int], Any]:
        @contextmanager
        def enter(_: int) -> Iterator[Callable[[], list[Any]]]:
            import numpy as np

            from tournant.cache import Cache, SQLiteStore, keyed_by

            async def embed(texts: list[str]) -> Any:
                return np.zeros((len(texts), 256), np.float32)

            async def through(path: Path) -> list[Any]:
                async with SQLiteStore(path) as store:
                    cache: Any = Cache(embed, batch=True, key=keyed_by("zeros"), store=store)
                    found: list[Any] = []
                    for at in range(0, count, 256):
                        found += await cache.get_many(names[at : at + 256])
                    return found

            with TemporaryDirectory() as folder:
                if read:
                    asyncio.run(through(Path(folder, "full.db")))
                    yield lambda: asyncio.run(through(Path(folder, "full.db")))
                    return
                number = iter(range(1000))
                yield lambda: asyncio.run(through(Path(folder, f"{next(number)}.db")))

        return enter

    timings = seconds_per_item(
        [Contestant("recalled", contestant(True)), Contestant("written", contestant(False))],
        count,
        runs=runs,
    )
    result = Result("a vector through the SQLite store", "us", skipped=timings.skipped)
    result.values = {who: [t * 1e6 for t in each] for who, each in timings.seconds.items()}
    result.facts = {"items": count, "cores taken by other programs": timings.others}
    return result


def shared(scale: float, runs: int) -> Result:
    """Count the calls that concurrent misses of one key make, and time what a miss costs."""
    from tournant.cache import Cache

    calls: list[int] = []

    @contextmanager
    def enter(count: int) -> Iterator[Callable[[], list[Any]]]:
        async def slow(x: int) -> int:
            calls.append(x)
            await asyncio.sleep(0)
            return x

        async def main() -> list[Any]:
            cache: Any = Cache(slow)
            return await asyncio.gather(*(cache.get(1) for _ in range(count)))

        yield lambda: asyncio.run(main())

    timings = seconds_per_item([Contestant("one of 1,000", enter)], 1000, runs=runs)
    result = Result("concurrent misses of one key", "us", skipped=timings.skipped)
    result.values = {who: [t * 1e6 for t in each] for who, each in timings.seconds.items()}
    result.facts = {"calls a run": len(calls) / runs}
    return result


def main(quick: bool = False) -> int:
    """Run everything and print the tables."""
    scale = 0.1 if quick else 1.0
    for benchmark, runs in ((hits, 7), (vectors, 3), (shared, 3)):
        benchmark(scale, runs).print()
    return 0


if __name__ == "__main__":
    harness.print_machine()
    sys.exit(main("--quick" in sys.argv))
