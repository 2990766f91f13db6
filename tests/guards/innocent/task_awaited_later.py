"""Tasks that are kept, and awaited, cancelled or looked at later."""

import asyncio
import contextlib


async def work(number):
    await asyncio.sleep(0.05)
    if number == 2:
        raise ValueError(number)
    return number


async def main():
    tasks = [asyncio.create_task(work(n)) for n in range(4)]
    await asyncio.sleep(0.2)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    failed = asyncio.create_task(work(2))
    await asyncio.wait([failed])
    assert isinstance(failed.exception(), ValueError)
    coroutine = work(1)
    await asyncio.sleep(0.05)
    results.append(await coroutine)
    late = asyncio.create_task(work(1))
    late.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await late
    unused = work(3)
    unused.close()


asyncio.run(main())
