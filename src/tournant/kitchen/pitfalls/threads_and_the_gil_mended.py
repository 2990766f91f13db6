"""In processes each has a GIL of its own. With one core there is nothing
to gain.
"""

import time

import tournant as tn


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
tn.map(season, [1] * 8, on="processes")  # starts the processes
alone = timed(lambda: list(map(season, [GRAINS, GRAINS])))
both = timed(lambda: tn.map(season, [GRAINS, GRAINS], on="processes"))
print(f"two pots one by one: {alone:.2f} s; in processes: {both:.2f} s")
