"""Sync over async: it hangs for ever. expect: deadlock, waits on its own loop"""

import asyncio


async def fetch():
    await asyncio.sleep(0.01)
    return 1


async def main():
    loop = asyncio.get_running_loop()
    future = asyncio.run_coroutine_threadsafe(fetch(), loop)
    return future.result()  # mistake


asyncio.run(main())
