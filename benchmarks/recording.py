"""What watching costs: every run's events and guards, against the same run with both switched off.

Each round runs the same pipeline with nothing, with events, and with events and guards, in an order that rotates from round to round,
in one process with warm workers. The figure is the difference to the run with nothing of the same round.
"""

import gc
import glob
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from benchmarks import engine, harness, work
from benchmarks.harness import Missing, Result, describe, wait_for_calm

NOTHING, EVENTS, BOTH = "nothing", "events", "events and guards"
SWITCHES = {
    NOTHING: {"TOURNANT_EVENTS": "0", "TOURNANT_GUARDS": "0"},
    EVENTS: {"TOURNANT_GUARDS": "0"},
    BOTH: {},
}
NANO = 1e9


@contextmanager
def switched(mode: str) -> Iterator[None]:
    """Set the environment as `mode` wants it."""
    names = SWITCHES[NOTHING]
    before = {name: os.environ.pop(name, None) for name in names}
    os.environ.update(SWITCHES[mode])
    try:
        yield
    finally:
        for name in names:
            os.environ.pop(name, None)
        os.environ.update({name: said for name, said in before.items() if said is not None})


def cpu_seconds() -> float:
    """Return the CPU seconds of this program and its workers; on Linux to the nanosecond, for the differences are small."""
    total = time.process_time()
    mine = {str(os.getpid())}
    for status in glob.glob("/proc/[0-9]*/stat"):
        with suppress(OSError):
            parent = Path(status).read_text().rsplit(")", 1)[1].split()[1]
            if parent in mine:
                for task in glob.glob(f"{os.path.dirname(status)}/task/*/schedstat"):
                    total += int(Path(task).read_text().split()[0]) / NANO
    return total


def rounds(pipeline: Any, count: int) -> dict[str, list[tuple[float, float]]]:
    """Return seconds and CPU seconds of each mode's runs, round by round."""
    modes = list(SWITCHES)
    taken: dict[str, list[tuple[float, float]]] = {mode: [] for mode in modes}
    with switched(NOTHING):
        pipeline.run()
    for number in range(count):
        turn = number % len(modes)
        for mode in modes[turn:] + modes[:turn]:
            gc.collect()
            wait_for_calm(harness.PATIENCE)
            with switched(mode):
                spent, start = cpu_seconds(), time.perf_counter()
                report = pipeline.run()
                seconds = time.perf_counter() - start
                cpu = cpu_seconds() - spent
            if report.done != report.sourced:
                raise RuntimeError(f"{report.done} of {report.sourced} inputs done")
            taken[mode].append((seconds, cpu))
    return taken


def per_call(name: str, stages: int, add: Callable[[Any], Any]) -> Callable[[float, int], Result]:
    """Return a benchmark of a pipeline whose stages do next to nothing: nanoseconds per item and stage."""

    def benchmark(scale: float, count: int) -> Result:
        items = max(2_000, int(100_000 * scale))
        taken = rounds(add(engine.engine().Pipeline(range(items))), count)
        calls = items * stages
        result = Result(
            name, "ns of CPU more, per item and stage", targets={EVENTS: "below 200"}
        )  # fmt: skip
        for mode in (EVENTS, BOTH):
            pairs = zip(taken[mode], taken[NOTHING], strict=True)
            result.values[mode] = [(one[1] - other[1]) / calls * NANO for one, other in pairs]
            pairs = zip(taken[mode], taken[NOTHING], strict=True)
            more = statistics.median(one[0] - other[0] for one, other in pairs)
            result.facts[f"{mode}: ns of time more"] = round(more / calls * NANO)
        alone = statistics.median(cpu for _, cpu in taken[NOTHING])
        result.facts["with nothing, ns of CPU per item and stage"] = round(alone / calls * NANO)
        result.facts["items"] = items
        return result

    return benchmark


def mixed(scale: float, count: int) -> Result:
    """The mixed benchmark of the engine, in per cent of its throughput."""
    payload = work.burn_payload(500e-6, native_seconds=50e-6)
    items = max(500, int(6_000 * scale))
    pipeline = (
        engine.engine()
        .Pipeline(engine.repeated(payload)(items))
        .map(work.wait_5_ms, concurrency=64)
        .map(work.burn, on="processes")
        .map(work.hash_long, on="threads")
    )
    taken = rounds(pipeline, count)
    result = Result("mixed", "% of CPU more, per item", targets={BOTH: "below 1"})
    for mode in (EVENTS, BOTH):
        pairs = zip(taken[mode], taken[NOTHING], strict=True)
        result.values[mode] = [100 * (one[1] / other[1] - 1) for one, other in pairs]
        pairs = zip(taken[mode], taken[NOTHING], strict=True)
        more = statistics.median(one[0] / other[0] for one, other in pairs)
        result.facts[f"{mode}: % of time more"] = round(100 * (more - 1), 2)
    result.facts["items"] = items
    return result


BENCHMARKS: dict[str, Callable[[float, int], Result]] = {
    "loop": per_call("loop", 3, lambda p: p.map(work.add_one).map(work.add_one).map(work.add_one)),
    "threads": per_call("threads", 1, lambda p: p.map(work.increment, on="threads")),
    "processes": per_call("processes", 1, lambda p: p.map(work.increment, on="processes")),
    "mixed": mixed,
}


def main(only: list[str], quick: bool, runs: int | None) -> int:
    """Run the benchmarks named (all when none is), and print each; give the exit code."""
    failures = 0
    for name, benchmark in BENCHMARKS.items():
        if only and name not in only:
            continue
        start = time.perf_counter()
        try:
            result = benchmark(0.2 if quick else 1.0, runs or (5 if quick else 15))
        except (Missing, ImportError) as error:
            print(f"{name} skipped: not installed ({error})", file=sys.stderr)
            continue
        except Exception as error:
            failures += 1
            print(f"{name} failed: {describe(error)}", file=sys.stderr)
            continue
        result.facts["took"] = f"{math.ceil(time.perf_counter() - start)} s"
        result.print()
    engine.engine().shutdown()
    return 1 if failures else 0
