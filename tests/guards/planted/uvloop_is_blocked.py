"""The same on uvloop, in the very first step of the program. expect: blocked-loop, blocking call"""

import time

import uvloop


async def main():
    time.sleep(0.6)  # mistake


uvloop.run(main())
