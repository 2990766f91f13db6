"""Wait for what was started, and look at what came of it."""

import asyncio

SECONDS = {"fish": 0.01, "soup": 0.02, "salad": 0.5}
book = []


async def write_down(order):
    await asyncio.sleep(SECONDS[order])
    if order == "soup":
        raise ValueError("there is no soup today")
    book.append(order)


async def main():
    tasks = map(write_down, SECONDS)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    for order, result in zip(SECONDS, results, strict=True):
        if result is not None:
            print(f"{order}: {result}")


asyncio.run(main())
print("in the book:", book)
