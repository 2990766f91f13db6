"""A task that is still at work as the program ends. expect: stray-task"""

import asyncio


async def upload(name):
    await asyncio.sleep(0.5)
    print("uploaded", name)


async def main():
    task = asyncio.create_task(upload("report"))  # mistake
    await asyncio.sleep(0.05)
    print("done?", task.done())


asyncio.run(main())
