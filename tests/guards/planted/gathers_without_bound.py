"""Very many tasks at once, each with its data. expect: unbounded-tasks"""

import asyncio


async def download(number, answered):
    data = bytearray(20_000)
    await answered.wait()
    return len(data)


async def main():
    answered = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        for start in range(0, 10_000, 500):
            for number in range(start, start + 500):
                group.create_task(download(number, answered))  # mistake
            await asyncio.sleep(0)
        await asyncio.sleep(1.2)
        answered.set()


asyncio.run(main())
