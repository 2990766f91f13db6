"""Native code that never gives the interpreter lock away. expect: blocked-loop, cpu"""

import asyncio
import re


def valid(texts):
    return [re.match(r"(a+)+$", text) is not None for text in texts]  # mistake


async def main():
    await asyncio.sleep(0.1)
    valid(["a" * 25 + "b"] * 3)
    await asyncio.sleep(0.1)


asyncio.run(main())
