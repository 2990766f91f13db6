"""Keep the task as long as it has something to do."""

import asyncio
import gc


class Oven:
    def __init__(self):
        self.hot = asyncio.Event()

    async def bake(self):
        await self.hot.wait()
        print("the bread is done")


async def main():
    oven = Oven()
    async with asyncio.TaskGroup() as kitchen:
        kitchen.create_task(oven.bake())
        await asyncio.sleep(0.01)
        gc.collect()
        print("waiting for the bread")
        oven.hot.set()


asyncio.run(main())
