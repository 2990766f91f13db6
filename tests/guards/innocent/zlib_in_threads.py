"""Native code that releases the interpreter lock, in a stage and in plain threads."""

import asyncio
import hashlib
import os
import zlib

import tournant as tn

data = os.urandom(400_000)


def pack(number):
    return len(zlib.compress(data))


def digest(number):
    for _ in range(3):
        hashlib.sha256(data).digest()
    return number


async def main():
    await asyncio.gather(*[asyncio.to_thread(pack, n) for n in range(30)])


print(tn.Pipeline(range(60)).map(pack).run().findings)
print(tn.Pipeline(range(150)).map(digest).run().findings)
asyncio.run(main())
