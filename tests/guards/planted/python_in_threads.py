"""Pure Python handed to threads of a plain program. expect: gil-bound, gil-bound"""

import asyncio


def render(number):
    text = []
    for n in range(16_000_000):
        text.append(n)  # mistake
        if len(text) > 100:
            text.clear()
    return number


async def main():
    await asyncio.gather(*[asyncio.to_thread(render, n) for n in range(6)])


asyncio.run(main())
