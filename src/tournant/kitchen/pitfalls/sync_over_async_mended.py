"""Async all the way: whoever waits for a coroutine is a coroutine."""

import asyncio


async def price(dish):
    await asyncio.sleep(0.01)
    return {"fish": 20, "soup": 9}[dish]


async def bill(dishes):
    return sum(await asyncio.gather(*(price(dish) for dish in dishes)))


async def main():
    print("that makes", await bill(["fish", "soup"]))


asyncio.run(main())
