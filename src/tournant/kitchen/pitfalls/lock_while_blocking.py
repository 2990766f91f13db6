"""Blocking while holding a lock: a thread's lock in coroutines. Who waits
for it stops the loop, and so whoever holds it.
"""

import asyncio
import threading

knife = threading.Lock()


async def chop(cook):
    with knife:
        print(cook, "has the knife")
        await asyncio.sleep(0.01)
        print(cook, "puts it back")


async def main():
    await asyncio.gather(chop("Ann"), chop("Ben"))


asyncio.run(main())
