"""A forgotten await. expect: never-awaited"""

import asyncio


async def save(number):
    await asyncio.sleep(0.01)


async def main():
    await asyncio.sleep(0.01)
    save(1)  # mistake
    await asyncio.sleep(0.01)


asyncio.run(main())
