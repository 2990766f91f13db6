"""Another thread holds the interpreter lock for long. expect: blocked-loop, another thread"""

import asyncio
import re


def check(texts):
    for text in texts:
        re.match(r"(a+)+$", text)  # mistake


async def main():
    waiting = asyncio.create_task(asyncio.to_thread(check, ["a" * 25 + "b"] * 3))
    while not waiting.done():
        await asyncio.sleep(0.01)
    await waiting
    await asyncio.sleep(0.1)


asyncio.run(main())
