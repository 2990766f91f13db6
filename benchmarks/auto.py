"""What ``on="auto"`` costs beside the better of threads and processes: `python -m benchmarks auto [--quick] [--calm SECONDS]`.

Work that holds the interpreter lock (Python code) and work that releases it (zlib), in runs of 0.3, 2 and 8 seconds on one core; with
worker processes to start ("cold") and with those of an earlier run at hand ("warm"). The three ways are interleaved. The figure is the
median of auto over the median of the better one; the target is at most 1.05.
"""

import argparse
import os
import statistics
import sys
import time
import zlib
from collections.abc import Callable
from typing import Any

from benchmarks import harness
from benchmarks.harness import Neighbours, Result, wait_for_calm

WAYS = ("threads", "processes", "auto")
LENGTHS = {"short": 0.3, "medium": 2.0, "long": 8.0}
TARGET = "at most 1.05 of the better"


def python_code(number: int) -> int:
    """Hold the lock for about a millisecond."""
    total = 0
    for i in range(16_000):
        total = (total * 31 + i + number) & 0xFFFF
    return total


def native_code(payload: bytes) -> int:
    """Release the lock for some milliseconds."""
    return len(zlib.compress(payload, 6))


def seconds_each(function: Callable[[Any], Any], item: Any) -> float:
    """Return the seconds of one call, of the quickest of a few."""
    spent = []
    for _ in range(7):
        begun = time.perf_counter()
        function(item)
        spent.append(time.perf_counter() - begun)
    return min(spent)


def compare(
    name: str, function: Callable[[Any], Any], items: list[Any], *, warm: bool, rounds: int
) -> Result:
    """Run the three ways in turn."""
    import tournant as tn

    result = Result(name, "seconds", targets={"auto": TARGET})
    neighbours, ended_on = Neighbours(), []
    for way in WAYS if warm else ():
        tn.Pipeline(items).map(function, on=way).run()
    for _ in range(rounds):
        for way in WAYS:
            if not warm:
                tn.shutdown()
            wait_for_calm(harness.PATIENCE)
            begun = time.perf_counter()
            report = tn.Pipeline(items).map(function, on=way).run()
            result.values.setdefault(way, []).append(time.perf_counter() - begun)
            if way == "auto":
                ended_on.append(report.stages[0].on)
    tn.shutdown()
    better = min(WAYS[:2], key=result.median)
    result.facts["items"] = len(items)
    result.facts["auto ended on"] = {on: ended_on.count(on) for on in dict.fromkeys(ended_on)}
    result.facts[f"auto / {better}"] = round(result.median("auto") / result.median(better), 3)
    result.facts["best of auto / best of the better"] = round(
        min(result.values["auto"]) / min(min(result.values[way]) for way in WAYS[:2]), 3
    )
    result.facts["cores taken by other programs"] = f"{neighbours.since()[0]:.2f}"
    return result


def main() -> int:
    """Run all of it; `--quick` leaves out the long runs and takes three rounds."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks auto", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="short and medium runs, three rounds")
    parser.add_argument("--calm", type=float, default=0.0, metavar="SECONDS")
    arguments = parser.parse_args()
    harness.PATIENCE = arguments.calm
    harness.print_machine()
    payloads = [os.urandom(1 << 17) for _ in range(16)]
    works: dict[str, tuple[Callable[[Any], Any], Callable[[int], list[Any]]]] = {
        "python": (python_code, lambda count: list(range(count))),
        "zlib": (native_code, lambda count: [payloads[n % 16] for n in range(count)]),
    }
    ratios = []
    for work, (function, make) in works.items():
        each = seconds_each(function, make(1)[0])
        for length, seconds in LENGTHS.items():
            if arguments.quick and length == "long":
                continue
            items = make(max(8, round(seconds / each)))
            rounds = 3 if arguments.quick else 9 if length == "short" else 5
            for warm in (False, True):
                name = f"auto: {work}, {length}, {'warm' if warm else 'cold'}"
                result = compare(name, function, items, warm=warm, rounds=rounds)
                result.print()
                better = min(map(result.median, WAYS[:2]))
                ratios.append(result.median("auto") / better)
    print(f"\nmedian of all: {statistics.median(ratios):.3f}, worst {max(ratios):.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
