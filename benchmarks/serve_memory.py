"""What the server keeps of clients that leave in the middle of an answer, and of clients that stop reading."""

import asyncio
import json
import os
import socket
import time
import urllib.request
from contextlib import contextmanager

from benchmarks import serve_load
from benchmarks.harness import Result

OURS = "tournant serve"
MIB = 2**20
WAVE = 500
READERS = 100
SETTLED = 10.0  # seconds that the memory has to come to rest; readers are closed after 20


def memory(pid):
    """Return the bytes of memory that a process holds."""
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def stats(port):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/stats") as response:
        return json.load(response)


async def idle(port):
    """Wait until the server has noticed that everybody left."""
    async with asyncio.timeout(30):
        while (seen := await asyncio.to_thread(stats, port))["answers"]["running"]:
            await asyncio.sleep(0.05)
    return seen


async def abandon(port, streams):
    """Begin streams at once, read a token of each, and leave."""

    async def one():
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(serve_load.request())
        await reader.readuntil(b"data: ")
        return writer

    for writer in await asyncio.gather(*(one() for _ in range(streams))):
        writer.transport.abort()
    return await idle(port)


@contextmanager
def readers_that_stop(port, count):
    """Ask for streams and read nothing of them."""
    clients = []
    try:
        for _ in range(count):
            client = socket.socket()
            clients.append(client)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            client.connect(("127.0.0.1", port))
            client.sendall(serve_load.request())
        yield
    finally:
        for client in clients:
            client.close()


def at_rest(pid):
    """Return the memory of a process once it has stopped growing, else the most that was seen."""
    most, since, due = memory(pid), time.monotonic(), time.monotonic() + SETTLED
    while (now := time.monotonic()) < due and now - since < 2.0:
        time.sleep(0.1)
        if (seen := memory(pid)) > most:
            most, since = seen, now
    return most


def abandoned(quick, process, gateway):
    """Print what is left of abandoned streams, and what a reader that stops costs; return the exit code."""
    streams = 1_000 if quick else 5_000
    left = Result(f"serve abandoned: memory after {streams:,} streams, against before", "MiB")
    stopped = Result(f"serve abandoned: memory of each of {READERS} readers that stop", "MiB")
    # Slow enough that the upstream is not what is measured; it is cut long before its end.
    with (
        process("-m", "benchmarks.serve_upstream", "100000", "0.1") as (_, upstream),
        gateway(OURS, upstream) as (child, port),
    ):
        asyncio.run(abandon(port, 10))
        before = memory(child.pid)
        for _ in range(streams // WAVE):
            seen = asyncio.run(abandon(port, WAVE))
        left.values[OURS] = [(memory(child.pid) - before) / MIB]
        left.facts["ended"] = seen["answers"]["ended"]
        left.facts["before"] = f"{before / MIB:.1f} MiB, after 10 streams"
        left.facts["waves"] = f"of {WAVE} at once"
    with (
        process("-m", "benchmarks.serve_upstream", "10000000", "0") as (_, upstream),
        gateway(OURS, upstream) as (child, port),
    ):
        with readers_that_stop(port, 2):
            at_rest(child.pid)
        before = memory(child.pid)
        with readers_that_stop(port, READERS):
            held = at_rest(child.pid)
            stopped.facts["answers in progress"] = stats(port)["answers"]["running"]
        stopped.values[OURS] = [(held - before) / MIB / READERS]
    left.targets[OURS], stopped.targets[OURS] = "below 10", "below 1"
    left.print()
    stopped.print()
    return int(left.median(OURS) > 10 or stopped.median(OURS) > 1)
