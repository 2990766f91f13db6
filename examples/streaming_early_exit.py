"""Streaming with an early exit: results are used as they come, and leaving stops the rest.

The source never ends. Channels are bounded, so it is read only a little ahead of what is used.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator

import tournant as tn

furthest = 0


def numbers() -> Iterator[int]:
    global furthest
    number = 0
    while True:
        number += 1
        furthest = max(furthest, number)
        yield number


async def look_up(number: int) -> int:
    await asyncio.sleep(0.002)
    return number


def is_prime(number: int) -> bool:
    return number > 1 and all(number % factor for factor in range(2, int(number**0.5) + 1))


pipeline = (
    tn.Pipeline(numbers).map(look_up, concurrency=16).filter(is_prime, on="threads").ordered()
)


async def main() -> None:
    found: list[int] = []
    async with pipeline.open() as run:
        async for prime in run:
            found.append(prime)
            if len(found) == 10:
                break
    left = len(asyncio.all_tasks()) - 1
    report = run.report
    print(f"async: {found}")
    print(
        f"tasks left: {left}; inputs: {report.sourced} = {report.done} done"
        f" + {report.filtered} filtered + {report.interrupted} interrupted"
    )


asyncio.run(main())

# The same pipeline from synchronous code. Its source is a function, so this run begins at 1 again.
print(f"sync: {list(itertools.islice(pipeline.iter(), 5))}")
print(f"the endless source was read {furthest:,} items far")
