"""An asyncio lock across an await, and a threading lock that threads hold for long."""

import asyncio
import threading
import time

lock = threading.Lock()


def hold():
    with lock:
        time.sleep(0.3)


async def main():
    gate = asyncio.Lock()

    async def enter():
        async with gate:
            await asyncio.sleep(0.1)

    await asyncio.gather(enter(), enter(), asyncio.to_thread(hold), asyncio.to_thread(hold))


asyncio.run(main())
