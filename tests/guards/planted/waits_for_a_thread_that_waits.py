"""The loop waits for a thread that waits for the loop. expect: deadlock, waits on its own loop"""

import asyncio
from concurrent.futures import ThreadPoolExecutor

pool = ThreadPoolExecutor(1)


async def fetch():
    return 1


def work(loop):
    return asyncio.run_coroutine_threadsafe(fetch(), loop).result()


async def main():
    return pool.submit(work, asyncio.get_running_loop()).result()  # mistake


asyncio.run(main())
