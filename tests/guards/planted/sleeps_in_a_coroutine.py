"""A blocking call in async code. expect: blocked-loop, blocking call"""

import asyncio
import time


async def fetch(number):
    time.sleep(0.6)  # mistake
    return number


async def main():
    await asyncio.sleep(0.1)
    await fetch(1)
    await asyncio.sleep(0.1)


asyncio.run(main())
