"""A pipeline begins what it has room for: eight documents are under way,
and a document that is done with is gone.
"""

import asyncio
import resource

import tournant as tn

resource.setrlimit(resource.RLIMIT_AS, (1 << 29, 1 << 29))
server = asyncio.Semaphore(5)
total = 0


async def fetch(number):
    async with server:
        await asyncio.sleep(0.001)
    return bytes([number % 256]) * 100_000  # a document


async def add(document):
    global total
    total += len(document)


tn.Pipeline(range(8_000)).map(fetch, concurrency=8).for_each(add).run()
print(total, "bytes")
