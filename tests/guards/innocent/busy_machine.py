"""Other programs take the machine's cores."""

import asyncio
import hashlib
import subprocess
import sys
import time

import tournant as tn

HOG = "import time; end = time.monotonic() + 2.5\nwhile time.monotonic() < end: pass"
hogs = [subprocess.Popen([sys.executable, "-S", "-c", HOG]) for _ in range(4)]


async def answer(number):
    for _ in range(5):
        await asyncio.sleep(0.005)
        sum(range(20_000))
    return number


def digest(number):
    return hashlib.sha256(b"x" * 3_000_000).hexdigest()


async def main():
    end = time.monotonic() + 1.0
    while time.monotonic() < end:
        await asyncio.gather(*[answer(n) for n in range(10)])


asyncio.run(main())
print(tn.Pipeline(range(100)).map(answer).map(digest).run().findings)
for hog in hogs:
    hog.kill()
    hog.wait()
