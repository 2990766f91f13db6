"""Native code that never gives the interpreter lock away. expect: blocked-loop, cpu"""

import asyncio
import re


def valid(text):
    return re.match(r"(a+)+$", text) is not None  # mistake


async def main():
    await asyncio.sleep(0.1)
    valid("a" * 28 + "b")
    await asyncio.sleep(0.1)


asyncio.run(main())
