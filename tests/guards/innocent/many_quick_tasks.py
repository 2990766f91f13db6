"""Very many tasks that take microseconds each."""

import asyncio


async def quick(number):
    total = sum(range(100))
    await asyncio.sleep(0)
    return number + total


async def main():
    for _ in range(10):
        async with asyncio.TaskGroup() as group:
            for n in range(6_000):
                group.create_task(quick(n))
                if n % 500 == 0:
                    await asyncio.sleep(0)


asyncio.run(main())
