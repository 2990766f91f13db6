"""A task that nobody holds: asyncio keeps only a weak reference, and the
garbage collector takes it away in mid-work.
"""

import asyncio
import gc


class Oven:
    def __init__(self):
        self.hot = asyncio.Event()
        asyncio.create_task(self.bake())

    async def bake(self):
        await self.hot.wait()
        print("the bread is done")


async def main():
    Oven()
    await asyncio.sleep(0.01)
    gc.collect()  # comes by itself sooner or later
    print("waiting for the bread")
    await asyncio.sleep(0.1)


asyncio.run(main())
