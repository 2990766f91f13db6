"""CPU work in processes: pure Python on every core, with no chunk size to choose and no ``__main__`` guard.

The functions of this script travel to the worker processes by value.
"""

from __future__ import annotations

import os
import time

import tournant as tn


def collatz(start: int) -> tuple[int, int, int]:
    """Return the start, the steps it takes to come down to 1, and the process that counted them."""
    steps, value = 0, start
    while value != 1:
        value = value // 2 if value % 2 == 0 else 3 * value + 1
        steps += 1
    return start, steps, os.getpid()


numbers = range(1, 150_001)

began = time.perf_counter()
alone = [collatz(n)[:2] for n in numbers]
sequential = time.perf_counter() - began

tn.run(os.getpid, on="processes")  # starts the pool, so that its start is not in the figure below
began = time.perf_counter()
results = tn.map(collatz, numbers, on="processes")
parallel = time.perf_counter() - began

start, steps = max(alone, key=lambda found: found[1])
workers = {pid for *_, pid in results}
print(f"longest way down: {steps} steps from {start}")
print(f"same results, same order: {[found[:2] for found in results] == alone}")
print(f"ran in the caller's process: {os.getpid() in workers}; worker processes: {len(workers)}")
print(f"one core {sequential:.2f} s, the pool {parallel:.2f} s")
