"""Threads behind the GIL: two threads that run Python code take turns, and
need as long as one.
"""

import time
from concurrent.futures import ThreadPoolExecutor


def season(grains):
    total = 0
    for grain in range(grains):
        total += grain * grain % 7
    return total


def timed(work):
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


GRAINS = 20_000_000
with ThreadPoolExecutor(2) as cooks:
    alone = timed(lambda: list(map(season, [GRAINS, GRAINS])))
    both = timed(lambda: list(cooks.map(season, [GRAINS, GRAINS])))
print(f"two pots one by one: {alone:.2f} s; in two threads: {both:.2f} s")
