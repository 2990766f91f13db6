"""Timing contestants side by side, and printing what came of it.

A contestant is a context manager that prepares (starts pools, imports libraries) and yields a
callable; only the callable is timed. The contestants of a benchmark are interleaved, A B C A B C,
so that whatever else the machine does falls on all of them alike.
"""

import faulthandler
import gc
import importlib.metadata
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass, field
from typing import Any

HANG = 600.0
PATIENCE = 0.0  # seconds to wait before each timing for other programs to be done; see `--calm`
ATTEMPTS = 3  # with patience, a timing is repeated when others turned out to be busy after all
BUSY = 0.25  # cores


class Missing(Exception):
    """A contestant's library is not installed."""


@dataclass(frozen=True)
class Contestant:
    """Somebody who runs the work.

    Attributes:
        name: What the table calls it.
        enter: Called with the number of items; gives a context manager that yields the callable to time.
        share: The part of the benchmark's items it is given. Results are per item, so a contestant
            that is a hundred times slower than the rest need not be waited for.
    """

    name: str
    enter: Callable[[int], AbstractContextManager[Callable[[], Any]]]
    share: float = 1.0


@dataclass
class Result:
    """What one benchmark found."""

    benchmark: str
    unit: str
    values: dict[str, list[float]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    targets: dict[str, str] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    higher_is_better: bool = False

    def median(self, name: str) -> float:
        return statistics.median(self.values[name])

    def as_json(self) -> str:
        results = {
            name: {
                "median": round(statistics.median(runs), 4),
                "min": round(min(runs), 4),
                "max": round(max(runs), 4),
                "runs": len(runs),
            }
            for name, runs in self.values.items()
        }
        load = [round(x, 2) for x in os.getloadavg()] if hasattr(os, "getloadavg") else []
        return json.dumps(
            {
                "benchmark": self.benchmark,
                "unit": self.unit,
                "results": results,
                "skipped": self.skipped,
                "targets": self.targets,
                "facts": self.facts,
                "load": load,
            }
        )

    def print(self) -> None:
        """Print the table for people, then the line for programs."""
        print(f"\n## {self.benchmark} ({self.unit})")
        for key, value in self.facts.items():
            print(f"   {key}: {value}")
        width = max([len(n) for n in [*self.values, *self.skipped]] + [10])
        order = sorted(self.values, key=self.median, reverse=self.higher_is_better)
        if order:
            print(f"   {'':{width}} {'median':>10} {'min':>10} {'max':>10}")
        for name in order:
            runs = self.values[name]
            cells = [statistics.median(runs), min(runs), max(runs)]
            target = f"   target {self.targets[name]}" if name in self.targets else ""
            print(f"   {name:{width}} " + " ".join(f"{x:>10.2f}" for x in cells) + target)
        for name, reason in self.skipped.items():
            print(f"   {name:{width}} skipped: {reason}")
        print(self.as_json(), flush=True)


@dataclass(frozen=True)
class Timings:
    """What came of timing contestants.

    Attributes:
        seconds: Seconds per item of every run, by contestant.
        skipped: The reason for each contestant that has none.
        cpu: The median of the CPU microseconds per item, over all processes of a contestant. Unlike time it
            hardly depends on who else uses the machine.
        others: How many cores other programs took meanwhile, in words.
    """

    seconds: dict[str, list[float]]
    skipped: dict[str, str]
    cpu: dict[str, float]
    others: str


def seconds_per_item(
    contestants: Sequence[Contestant],
    items: int,
    *,
    runs: int = 3,
    check: Callable[[Any], bool] | None = None,
) -> Timings:
    """Time every contestant `runs` times, interleaved.

    Args:
        contestants: Who takes part. Warming up is theirs to do when they are entered.
        items: How many items a run has.
        runs: How often each is timed.
        check: Called with what the timed callable returned (a sized collection of the results).

    Returns:
        What was measured, and who was skipped.
    """
    times: dict[str, list[float]] = {}
    cpu: dict[str, list[float]] = {}
    taken: list[float] = []
    skipped: dict[str, str] = {}
    with ExitStack() as stack:
        ready: list[tuple[str, int, Callable[[], Any]]] = []
        for contestant in contestants:
            count = max(1, int(items * contestant.share))
            try:
                with hang_guard():
                    call = stack.enter_context(contestant.enter(count))
            except (Missing, ImportError) as error:
                skipped[contestant.name] = f"not installed ({error})"
                continue
            except Exception as error:
                skipped[contestant.name] = f"failed: {describe(error)}"
                continue
            ready.append((contestant.name, count, call))
        for _ in range(runs):
            for name, count, call in ready:
                if name in skipped:
                    continue
                try:
                    for _attempt in range(ATTEMPTS if PATIENCE else 1):
                        gc.collect()
                        wait_for_calm(PATIENCE)
                        with hang_guard():
                            neighbours = Neighbours()
                            start = time.perf_counter()
                            outcome = call()
                            elapsed = time.perf_counter() - start
                            others, own = neighbours.since()
                        if others < BUSY:
                            break
                except Exception as error:
                    skipped[name] = f"failed: {describe(error)}"
                    continue
                if len(outcome) != count or (check is not None and not check(outcome)):
                    skipped[name] = f"wrong: {count} items in, {len(outcome)} out"
                    continue
                taken.append(others)
                times.setdefault(name, []).append(elapsed / count)
                cpu.setdefault(name, []).append(own / count)
    for name in skipped:
        times.pop(name, None)
    return Timings(
        times,
        skipped,
        {
            name: round(statistics.median(each) * 1e6, 2)
            for name, each in cpu.items()
            if name in times
        },
        f"{statistics.mean(taken):.2f} of {cores()}" if taken else "unknown",
    )


class Neighbours:
    """How much of the machine other programs take, so that a figure can be read for what it is."""

    def __init__(self) -> None:
        self.last = self.now()

    @staticmethod
    def now() -> tuple[float, float, float]:
        """Return seconds of the clock, CPU seconds of the machine, and those of this program's family."""
        try:
            import psutil
        except ImportError:
            return (time.perf_counter(), 0.0, 0.0)
        busy = psutil.cpu_times()
        total = sum(busy) - busy.idle - getattr(busy, "iowait", 0.0) - getattr(busy, "guest", 0.0)
        me = psutil.Process()
        mine = sum(me.cpu_times()[:4])  # with the children that have ended and were waited for
        for child in me.children(recursive=True):
            with suppress(psutil.Error):
                mine += sum(child.cpu_times()[:4])
        return (time.perf_counter(), total, mine)

    def since(self) -> tuple[float, float]:
        """Return the cores that others kept busy since the last call, and our own CPU seconds."""
        (then, total, mine), self.last = self.last, self.now()
        own = self.last[2] - mine
        others = (self.last[1] - total) - own
        return max(0.0, others / max(1e-9, self.last[0] - then)), own


def wait_for_calm(patience: float) -> None:
    """Wait until other programs leave the machine alone, at most `patience` seconds."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        neighbours = Neighbours()
        time.sleep(0.3)
        if neighbours.since()[0] < 0.15:
            return


def describe(error: BaseException) -> str:
    """Return an exception in one line."""
    return (
        f"{type(error).__name__}: {str(error).splitlines()[0][:160] if str(error) else ''}".strip()
    )


class hang_guard:
    """Print every thread's stack and end the process when its block takes ten minutes."""

    def __enter__(self) -> None:
        faulthandler.dump_traceback_later(HANG, exit=True)

    def __exit__(self, *_: object) -> None:
        faulthandler.cancel_dump_traceback_later()


def cores() -> int:
    """Return the number of cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def machine() -> dict[str, Any]:
    """Return the facts that a figure means nothing without."""
    return {
        "machine": platform.machine(),
        "processor": processor_name(),
        "cores": cores(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load": [round(x, 2) for x in os.getloadavg()] if hasattr(os, "getloadavg") else [],
        "versions": dict(versions()),
    }


def processor_name() -> str:
    """Return the processor's name where the system tells it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor()


PACKAGES = [
    "tournant",
    "uvloop",
    "spdl-core",
    "aiohttp",
    "openai",
    "tenacity",
    "aiolimiter",
    "aiostream",
    "streamable",
    "mpire",
    "lancedb",
    "wordllama",
    "onnxruntime",
    "tokenizers",
    "selectolax",
    "pypdfium2",
    "semantic-text-splitter",
    "numpy",
]


def versions() -> Iterator[tuple[str, str]]:
    """Yield name and version of every package that a figure may depend on."""
    for name in PACKAGES:
        try:
            yield name, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue


def print_machine() -> None:
    """Print the machine, for people and for programs."""
    facts = machine()
    print("## machine")
    for key, value in facts.items():
        told = ", ".join(f"{n} {v}" for n, v in value.items()) if isinstance(value, dict) else value
        print(f"   {key}: {told}")
    print(json.dumps({"benchmark": "machine", **facts}), flush=True)
    if facts["load"] and facts["load"][0] > 0.5:
        print("   note: the machine is busy; trust the ratios, not the figures", file=sys.stderr)
