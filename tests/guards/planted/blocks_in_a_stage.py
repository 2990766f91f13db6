"""A stage that blocks the loop in a helper. expect: blocked-loop, blocking call, stage look_up"""

import asyncio
import time

import tournant as tn


def driver(number):
    time.sleep(0.6)  # mistake
    return number


async def look_up(number):
    await asyncio.sleep(0.001)
    return driver(number) if number == 3 else number


report = tn.Pipeline(range(10)).map(look_up).run()
