"""A lock of the loop: who waits for it gives the loop back."""

import asyncio


async def chop(cook, knife):
    async with knife:
        print(cook, "has the knife")
        await asyncio.sleep(0.01)
        print(cook, "puts it back")


async def main():
    knife = asyncio.Lock()
    await asyncio.gather(chop("Ann", knife), chop("Ben", knife))


asyncio.run(main())
