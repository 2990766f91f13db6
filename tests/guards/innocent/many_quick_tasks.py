"""Very many tasks that become ready at once and take microseconds each."""

import asyncio


async def quick(number, begin):
    await begin.wait()
    return number + sum(range(2_000))


async def main():
    for _ in range(3):
        begin = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            for n in range(4_000):
                group.create_task(quick(n, begin))
                if n % 100 == 0:
                    await asyncio.sleep(0)
            await asyncio.sleep(0.1)
            begin.set()


asyncio.run(main())
