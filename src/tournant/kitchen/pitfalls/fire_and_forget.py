"""Fire and forget: nobody waits for the tasks, so what they do is cut off
and what they raise is lost.
"""

import asyncio

SECONDS = {"fish": 0.01, "soup": 0.02, "salad": 0.5}
book = []


async def write_down(order):
    await asyncio.sleep(SECONDS[order])
    if order == "soup":
        raise ValueError("there is no soup today")
    book.append(order)


async def main():
    for order in SECONDS:
        asyncio.create_task(write_down(order))
    await asyncio.sleep(0.1)  # lays the table
    print("all orders are written down")


asyncio.run(main())
print("in the book:", book)
