"""Sync over async: waiting on the loop's own thread for something that
only the loop can do. Nothing moves ever again.
"""

import asyncio


async def price(dish):
    await asyncio.sleep(0.01)
    return {"fish": 20, "soup": 9}[dish]


def bill(dishes, loop):
    total = 0
    for dish in dishes:
        future = asyncio.run_coroutine_threadsafe(price(dish), loop)
        total += future.result()  # C# calls it .Result
    return total


async def main():
    print("that makes", bill(["fish", "soup"], asyncio.get_running_loop()))


asyncio.run(main())
