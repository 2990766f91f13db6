"""A garbage collection that takes long."""

import asyncio
import gc


async def main():
    gc.disable()
    kept = []
    for _ in range(60):
        kept.append([[] for _ in range(40_000)])
        await asyncio.sleep(0)
    gc.enable()
    await asyncio.sleep(0.1)
    for _ in range(4):
        gc.collect()
    await asyncio.sleep(0.1)
    gc.freeze()
    del kept


asyncio.run(main())
