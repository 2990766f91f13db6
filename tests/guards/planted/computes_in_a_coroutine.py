"""Python code that computes for long in async code. expect: blocked-loop, cpu"""

import asyncio


async def count():
    total = 0
    for number in range(20_000_000):
        total += number  # mistake
    return total


async def main():
    await asyncio.sleep(0.1)
    await count()
    await asyncio.sleep(0.1)


asyncio.run(main())
