"""Blocking calls where they belong: asyncio.to_thread, and a thread stage."""

import asyncio
import time

import tournant as tn


def wait(number):
    time.sleep(0.05)
    return number


async def main():
    await asyncio.gather(*[asyncio.to_thread(time.sleep, 0.4) for _ in range(4)])


asyncio.run(main())
print(tn.Pipeline(range(20)).map(wait).run().findings)
print(tn.Pipeline(range(40)).map(wait, blocking=True).run().findings)
