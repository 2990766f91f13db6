"""The same in another thread. expect: blocked-loop, another thread"""

import asyncio
import re


def check(text):
    found = re.match(r"(a+)+$", text)  # mistake
    return found is not None


async def main():
    waiting = asyncio.create_task(asyncio.to_thread(check, "a" * 24 + "b"))
    while not waiting.done():
        await asyncio.sleep(0.01)
    await waiting
    await asyncio.sleep(0.1)


asyncio.run(main())
