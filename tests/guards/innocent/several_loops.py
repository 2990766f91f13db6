"""One loop after the other, one in a thread, and waiting for it as one should."""

import asyncio
import threading
import time


async def answer():
    await asyncio.sleep(0.02)
    return 42


for _ in range(3):
    asyncio.run(answer())

loop = asyncio.new_event_loop()
thread = threading.Thread(target=loop.run_forever)
thread.start()
assert asyncio.run_coroutine_threadsafe(answer(), loop).result() == 42
time.sleep(0.4)


async def main():
    future = asyncio.run_coroutine_threadsafe(answer(), loop)
    return await asyncio.wrap_future(future)


assert asyncio.run(main()) == 42
loop.call_soon_threadsafe(loop.stop)
thread.join()
loop.close()
own = asyncio.new_event_loop()
own.run_until_complete(answer())
time.sleep(0.4)
own.run_until_complete(answer())
own.close()
