"""A threading lock held across an await: it hangs for ever. expect: deadlock, waits on its own loop"""

import asyncio
import threading

lock = threading.Lock()


async def update(number):
    with lock:  # mistake
        await asyncio.sleep(0.05)
    return number


async def main():
    await asyncio.gather(update(1), update(2))


asyncio.run(main())
