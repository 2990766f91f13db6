"""A process that is stopped from outside, as a debugger does."""

import asyncio
import os
import subprocess

PAUSE = f"sleep 0.2; kill -STOP {os.getpid()}; sleep 0.7; kill -CONT {os.getpid()}"


async def main():
    pause = subprocess.Popen(["sh", "-c", PAUSE])
    for _ in range(100):
        await asyncio.sleep(0.01)
    await asyncio.to_thread(pause.wait)


asyncio.run(main())
