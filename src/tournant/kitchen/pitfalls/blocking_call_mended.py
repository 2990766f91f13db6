"""The blocking call in a thread: the loop goes on meanwhile."""

import asyncio
import time


def call_supplier():
    time.sleep(0.6)


async def order_fish():
    await asyncio.to_thread(call_supplier)


async def pour_water():
    began = time.perf_counter()
    await asyncio.sleep(0.1)
    took = time.perf_counter() - began
    print(f"a glass of water takes 0.1 s; this one took {took:.1f} s")


async def main():
    await asyncio.gather(pour_water(), order_fish())


asyncio.run(main())
