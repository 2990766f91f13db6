"""Blocking while holding an asyncio lock. expect: blocked-loop, blocking call"""

import asyncio
import time


class Account:
    def __init__(self):
        self.lock = asyncio.Lock()

    async def pay(self):
        async with self.lock:
            time.sleep(0.6)  # mistake


async def main():
    account = Account()
    await asyncio.gather(account.pay(), asyncio.sleep(0.1))


asyncio.run(main())
