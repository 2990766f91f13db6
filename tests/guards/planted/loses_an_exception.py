"""A task whose exception nobody fetches. expect: lost-exception"""

import asyncio


async def save(number):
    raise ValueError(f"no room for {number}")


async def main():
    asyncio.create_task(save(1))  # mistake
    await asyncio.sleep(0.05)


asyncio.run(main())
