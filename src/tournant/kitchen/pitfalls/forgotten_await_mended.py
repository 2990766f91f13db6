"""With the await, the condition is what the coroutine returned."""

import asyncio


async def is_of_age(guest):
    await asyncio.sleep(0.01)  # asks the database
    return guest != "Tim, 9"


async def main():
    for guest in ("Ann, 42", "Tim, 9"):
        if await is_of_age(guest):
            print("wine for", guest)
        else:
            print("juice for", guest)


asyncio.run(main())
