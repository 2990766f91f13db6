"""Structured concurrency, a timeout, and a service that runs until the program ends."""

import asyncio
import contextlib


async def service():
    while True:
        await asyncio.sleep(0.02)


async def slow():
    await asyncio.sleep(5)


async def main():
    background = asyncio.create_task(service())
    async with asyncio.TaskGroup() as group:
        for _ in range(20):
            group.create_task(asyncio.sleep(0.05))
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.05):
            await slow()
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(slow(), 0.05)
    assert not background.done()


asyncio.run(main())
