"""The engine's benchmarks: what a hop costs, and how much of the machine the work gets.

Each function here is one benchmark. It takes the share of the full number of items to use and the
number of runs, and returns a `Result`.
"""

import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks import byhand, peers, work
from benchmarks.harness import Contestant, Missing, Result, cores, describe, seconds_per_item

MICRO = 1e6
TOURNANT = "tournant"


def engine() -> Any:
    """Import the library under test, or say that it is missing."""
    try:
        import tournant

        tournant.Pipeline  # noqa: B018
    except (ImportError, AttributeError) as error:
        raise Missing(str(error)) from error
    return tournant


def tournant_stages(
    make_items: Callable[[int], Iterable[Any]],
    describe_stages: Callable[[Any], Any],
    **settings: Any,
) -> Callable[[int], Any]:
    """Return the contestant `tournant`; `describe_stages` adds the stages to a pipeline."""

    @contextmanager
    def enter(count: int) -> Iterator[Callable[[], list[Any]]]:
        tn = engine()
        describe_stages(tn.Pipeline(make_items(min(count, 64 * cores())), **settings)).collect()
        pipeline = describe_stages(tn.Pipeline(make_items(count), **settings))
        yield pipeline.collect
        tn.shutdown()

    return enter


def numbers(count: int) -> range:
    return range(count)


def repeated(payload: bytes) -> Callable[[int], list[bytes]]:
    """Return a source of `count` equal payloads, each an object of its own."""
    return lambda count: [bytes(bytearray(payload)) for _ in range(count)]


def compare(
    name: str,
    unit: str,
    contestants: list[Contestant],
    items: int,
    scale: float,
    runs: int,
    as_value: Callable[[float], float],
    **more: Any,
) -> Result:
    """Run contestants and convert seconds per item into the benchmark's unit."""
    items = max(200, int(items * scale))
    timings = seconds_per_item(contestants, items, runs=runs)
    result = Result(name, unit, skipped=timings.skipped, **more)
    result.values = {who: [as_value(t) for t in each] for who, each in timings.seconds.items()}
    result.facts.setdefault("items", items)
    result.facts["cores taken by other programs"] = timings.others
    result.facts["CPU us/item"] = timings.cpu
    return result


def microseconds(seconds: float) -> float:
    return seconds * MICRO


def loop3(scale: float, runs: int) -> Result:
    """Three trivial coroutine stages: what the plumbing costs per item."""
    stages = [(work.add_one, 64)] * 3

    def add(pipeline: Any) -> Any:
        for function, width in stages:
            pipeline = pipeline.map(function, concurrency=width)
        return pipeline

    contestants = [
        Contestant("by hand: asyncio.Queue", byhand.asyncio_queues(numbers, *stages)),
        Contestant(
            "by hand: asyncio.Queue, uvloop", byhand.asyncio_queues(numbers, *stages, uvloop=True)
        ),
        Contestant("streamable", peers.streamable_stages(numbers, *stages), share=0.25),
        Contestant("aiostream", peers.aiostream_stages(numbers, *stages), share=0.05),
        Contestant("spdl", peers.spdl_stages(numbers, *stages), share=0.05),
        Contestant(TOURNANT, tournant_stages(numbers, add)),
    ]
    result = compare("loop3", "us/item", contestants, 100_000, scale, runs, microseconds)
    return with_ratio(result, "by hand: asyncio.Queue", "at most 0.8 of asyncio.Queue")


def with_ratio(result: Result, beside: str, target: str) -> Result:
    """Say how Tournant compares with one other contestant of the same run."""
    result.targets[TOURNANT] = target
    if TOURNANT in result.values and beside in result.values:
        ratio = result.median(TOURNANT) / result.median(beside)
        result.facts[f"tournant / {beside}"] = round(ratio, 3)
    return result


def waits(scale: float, runs: int) -> Result:
    """A thousand items waiting at once, for ten milliseconds each."""
    width = 1000
    stage = (work.wait_10_ms, width)
    contestants = [
        Contestant("by hand: asyncio.Queue", byhand.asyncio_queues(numbers, stage)),
        Contestant(
            "by hand: asyncio.Queue, uvloop", byhand.asyncio_queues(numbers, stage, uvloop=True)
        ),
        Contestant("streamable", peers.streamable_stages(numbers, stage), share=0.5),
        Contestant("aiostream", peers.aiostream_stages(numbers, stage), share=0.1),
        Contestant("spdl", peers.spdl_stages(numbers, stage), share=0.1),
        Contestant(
            TOURNANT, tournant_stages(numbers, lambda p: p.map(work.wait_10_ms, concurrency=width))
        ),
    ]
    limit = 0.010 / width
    return compare(
        "waits",
        "times the limit",
        contestants,
        50_000,
        scale,
        runs,
        lambda t: t / limit,
        targets={TOURNANT: "at most 1.2"},
        facts={"limit": "0.5 s for 50,000 items"},
    )


def pool_contestants(
    make_items: Callable[[int], Any],
    function: Callable[[Any], Any],
    on: str,
    *,
    shares: dict[str, float] | None = None,
) -> list[Contestant]:
    """Return the contestants of a benchmark with one CPU-bound stage."""
    shares = shares or {}
    pool = byhand.thread_pool if on == "threads" else byhand.process_pool
    bare = f"ceiling: bare {on}"
    stage = (function, 2 * cores())
    contestants = [
        Contestant("one core", byhand.sequential(function, make_items)),
        Contestant(bare, byhand.bare(pool, function, make_items)),
        Contestant("executor.map", byhand.executor_map(pool, function, make_items)),
        Contestant("by hand: chunks of 64", byhand.executor_chunks(pool, function, make_items)),
        Contestant(
            "streamable",
            peers.streamable_stages(make_items, stage, pool=pool),
        ),
        Contestant("spdl", peers.spdl_stages(make_items, stage, pool=pool)),
        Contestant(TOURNANT, tournant_stages(make_items, lambda p: p.map(function, on=on))),
    ]
    if on == "processes":
        contestants.insert(-1, Contestant("mpire", peers.mpire_map(make_items, function)))
    return [Contestant(c.name, c.enter, shares.get(c.name, 1.0)) for c in contestants]


def thread_trivial(scale: float, runs: int) -> Result:
    """A thread stage that does next to nothing: what a hop to a thread costs per item."""
    shares = {"executor.map": 0.5, "streamable": 0.1, "spdl": 0.05}
    contestants = pool_contestants(numbers, work.increment, "threads", shares=shares)
    result = compare("thread_trivial", "us/item", contestants, 100_000, scale, runs, microseconds)
    return with_ratio(result, "by hand: chunks of 64", "at most 5")


def process_trivial(scale: float, runs: int) -> Result:
    """A process stage that does next to nothing with 1 KiB: what a hop to a process costs."""
    payload = repeated(bytes(work.KIB))
    shares = {"executor.map": 0.1, "streamable": 0.1, "spdl": 0.05}
    contestants = pool_contestants(payload, work.length, "processes", shares=shares)
    result = compare("process_trivial", "us/item", contestants, 100_000, scale, runs, microseconds)
    return with_ratio(result, "by hand: chunks of 64", "at most 8")


def speed_up(
    name: str, contestants: list[Contestant], items: int, scale: float, runs: int, **more: Any
) -> Result:
    """Run contestants and report their speed-up over one core in the same round of the same run."""
    result = compare(name, "x one core", contestants, items, scale, runs, lambda t: t, **more)
    alone = result.values.get("one core", [])
    result.facts["one core, us/item"] = (
        round(result.median("one core") * MICRO, 2) if alone else None
    )
    result.values = {
        who: [base / t for base, t in zip(alone, each, strict=False)]
        for who, each in result.values.items()
    }
    result.higher_is_better = True
    return with_ceiling(result)


def with_ceiling(result: Result) -> Result:
    """Say which part of what the machine gave just now went to the work."""
    for name in list(result.values):
        if name.startswith("ceiling") and TOURNANT in result.values:
            share = result.median(TOURNANT) / result.median(name)
            result.facts["tournant / ceiling"] = f"{100 * share:.0f} %"
    return result


def thread_20us(scale: float, runs: int) -> Result:
    """Twenty microseconds of native work that releases the GIL, in threads."""
    payload = work.native_payload(20e-6)
    shares = {"streamable": 0.25, "spdl": 0.1}
    contestants = pool_contestants(
        lambda count: [payload] * count, work.native, "threads", shares=shares
    )
    return speed_up(
        "thread_20us",
        contestants,
        60_000,
        scale,
        runs,
        targets={TOURNANT: f"at least {0.85 * cores():.1f}"},
        facts={"hashed": f"{len(payload) / work.KIB:.0f} KiB an item"},
    )


def process_100us(scale: float, runs: int) -> Result:
    """A hundred microseconds of pure Python, 1 KiB in and 1 KiB out, in processes."""
    payload = work.burn_payload(100e-6)
    shares = {"executor.map": 0.5, "streamable": 0.5, "spdl": 0.2}
    contestants = pool_contestants(repeated(payload), work.burn, "processes", shares=shares)
    return speed_up(
        "process_100us",
        contestants,
        30_000,
        scale,
        runs,
        targets={TOURNANT: f"at least {0.85 * cores():.1f}, no chunk size chosen"},
    )


def mixed(scale: float, runs: int) -> Result:
    """Wait on the loop, burn in processes, hash in threads: how near to CPU work / cores."""
    payload = work.burn_payload(500e-6, native_seconds=50e-6)
    make_items = repeated(payload)
    wait = (work.wait_5_ms, 64)

    def by_hand(chunk: int) -> Callable[[int], Any]:
        @contextmanager
        def enter(count: int) -> Iterator[Callable[[], list[bytes]]]:
            import asyncio

            items = make_items(count)
            with byhand.process_pool() as processes, byhand.thread_pool() as threads:
                byhand.warm_up(processes, work.burn, items)
                yield lambda: asyncio.run(
                    byhand.mixed_pipeline(
                        items, wait, work.burn, work.hash_long, processes, threads, chunk
                    )
                )

        return enter

    def add(pipeline: Any) -> Any:
        return (
            pipeline.map(work.wait_5_ms, concurrency=64)
            .map(work.burn, on="processes")
            .map(work.hash_long, on="threads")
        )

    cpu, bare = "CPU work on one core", "ceiling: bare processes"
    contestants = [
        Contestant(cpu, byhand.sequential(work.burn_and_hash, make_items)),
        Contestant(bare, byhand.bare(byhand.process_pool, work.burn_and_hash, make_items)),
        Contestant("by hand: item by item", by_hand(1), share=0.5),
        Contestant("by hand: chunks of 64", by_hand(64)),
        Contestant(
            "spdl", peers.spdl_mixed(make_items, wait, work.burn, work.hash_long), share=0.1
        ),
        Contestant(TOURNANT, tournant_stages(make_items, add)),
    ]
    result = compare(
        "mixed",
        "% of the limit",
        contestants,
        20_000,
        scale,
        runs,
        lambda t: t,
        targets={TOURNANT: "at least 90"},
        facts={"limit": "CPU work / cores, measured in the same run"},
    )
    alone = result.values.pop(cpu, [])
    result.facts["CPU work, us/item"] = (
        round(sorted(alone)[len(alone) // 2] * MICRO, 1) if alone else None
    )
    result.values = {
        who: [100 * base / cores() / t for base, t in zip(alone, each, strict=False)]
        for who, each in result.values.items()
    }
    result.higher_is_better = True
    return with_ceiling(result)


def pool_start(scale: float, runs: int) -> Result:
    """From nothing to the first result out of a process: the pool's start-up."""
    del scale
    result = Result("pool_start", "s", targets={TOURNANT: "below 0.5"})
    programs = {
        "ProcessPoolExecutor, spawn": "ProcessPoolExecutor(2, mp_context=get_context('spawn'))",
        "ProcessPoolExecutor, forkserver": "ProcessPoolExecutor(2, mp_context=get_context('forkserver'))",
    }
    scripts = {
        name: "import time; start = time.perf_counter()\n"
        "from concurrent.futures import ProcessPoolExecutor; from multiprocessing import get_context\n"
        f"with {pool} as pool: list(pool.map(abs, range(2)))\n"
        "print(time.perf_counter() - start)"
        for name, pool in programs.items()
    }
    scripts[TOURNANT] = (
        "import time; start = time.perf_counter()\n"
        "import tournant as tn\n"
        "assert tn.Pipeline(range(2)).map(abs, on='processes').collect() is not None\n"
        "print(time.perf_counter() - start)"
    )
    try:
        engine()
    except Missing as error:
        result.skipped[TOURNANT] = f"not installed ({error})"
        del scripts[TOURNANT]
    for _ in range(runs):
        for name, script in scripts.items():
            if name not in result.skipped:
                run_script(result, name, [sys.executable, "-c", script])
    return result


def run_script(result: Result, name: str, command: list[str]) -> None:
    """Run a program that prints one number, and keep the number."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode:
        result.values.pop(name, None)
        result.skipped[name] = "failed: " + (done.stderr.strip().splitlines() or ["?"])[-1][:160]
        return
    result.values.setdefault(name, []).append(float(done.stdout.split()[-1]))


def memory(scale: float, runs: int) -> Result:
    """Growth of the resident memory through a slow sink, few items and a hundred times as many."""
    del runs  # memory does not vary as time does: once is enough
    few, many = 10_000, max(10_000, int(1_000_000 * scale))
    result = Result(
        "memory",
        "MiB of growth",
        targets={f"{TOURNANT}, {many:,}": "within 50 of the run of 10,000"},
    )
    for who, counts in {
        "queues": (few, many),
        "gather": (few, min(many, 200_000)),
        TOURNANT: (few, many),
    }.items():
        for count in counts:
            command = [sys.executable, "-m", "benchmarks.memory", who, str(count)]
            run_script(result, f"{who}, {count:,}", command)
    if f"{TOURNANT}, {many:,}" in result.values:
        growth = result.median(f"{TOURNANT}, {many:,}") - result.median(f"{TOURNANT}, {few:,}")
        result.facts[f"tournant, {few:,} to {many:,}"] = f"{growth:+.1f} MiB"
    return result


BENCHMARKS: dict[str, Callable[[float, int], Result]] = {
    "pool_start": pool_start,
    "loop3": loop3,
    "waits": waits,
    "thread_trivial": thread_trivial,
    "thread_20us": thread_20us,
    "process_trivial": process_trivial,
    "process_100us": process_100us,
    "mixed": mixed,
    "memory": memory,
}


def main(only: list[str], quick: bool) -> int:
    """Run the benchmarks named (all when none is), and print each; give the exit code."""
    unknown = set(only) - set(BENCHMARKS)
    if unknown:
        print(
            f"no such benchmark: {', '.join(sorted(unknown))}; there are: {', '.join(BENCHMARKS)}",
            file=sys.stderr,
        )
        return 2
    failures = 0
    for name, benchmark in BENCHMARKS.items():
        if only and name not in only:
            continue
        start = time.perf_counter()
        try:
            result = benchmark(0.1 if quick else 1.0, 3)
        except Exception as error:
            failures += 1
            print(f"{name} failed: {describe(error)}", file=sys.stderr)
            continue
        result.facts["took"] = f"{math.ceil(time.perf_counter() - start)} s"
        result.print()
    return 1 if failures else 0
