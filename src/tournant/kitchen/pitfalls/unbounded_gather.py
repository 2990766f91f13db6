"""Gather without a bound: everything is begun at once, and all is kept
until the last has ended. That only five are answered at a time is no
help.
"""

import asyncio
import resource

# 512 MiB for this process, so that it hurts nobody else.
resource.setrlimit(resource.RLIMIT_AS, (1 << 29, 1 << 29))
server = asyncio.Semaphore(5)


async def fetch(number):
    async with server:
        await asyncio.sleep(0.001)
    return bytes([number % 256]) * 100_000  # a document


async def main():
    documents = await asyncio.gather(*map(fetch, range(8_000)))
    print(sum(map(len, documents)), "bytes")


asyncio.run(main())
