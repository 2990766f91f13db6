"""A task that nobody keeps, collected before it has ended. expect: stray-task"""

import asyncio
import gc


async def listen():
    await asyncio.get_running_loop().create_future()
    print("never reached")


async def main():
    asyncio.create_task(listen())  # mistake
    await asyncio.sleep(0.05)
    gc.collect()
    await asyncio.sleep(0.05)


asyncio.run(main())
