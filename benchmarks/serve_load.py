"""A load generator for token streams: raw asyncio protocols on uvloop, so that it is not the one who is measured.

`python -m benchmarks.serve_load HOST PORT STREAMS TOKENS RAMP_SECONDS`; prints one JSON document.
"""

import asyncio
import json
import sys
import time
from contextlib import suppress

BODY = b'{"model":"m","stream":true,"messages":[{"role":"user","content":"Say something long about nothing."}]}'
PATIENCE = 60.0


# A gateway may cut its chunks anywhere, and put a length in the middle of a word: what is counted is single bytes. Each
# token's event has one bracket that opens, and so has [DONE], which alone has an O; a chunk's length has neither.
EVENT, END = b"[", b"O"


class Client(asyncio.Protocol):
    def __init__(self, request, done):
        self.request = request
        self.done = done
        self.times = []
        self.head = b""
        self.in_body = False
        self.tokens = 0
        self.status = b""
        self.over = False

    def connection_made(self, transport):
        self.transport = transport
        transport.write(self.request)

    def data_received(self, data):
        now = time.perf_counter()
        if not self.in_body:
            self.head += data
            head, found, data = self.head.partition(b"\r\n\r\n")
            if not found:
                return
            self.in_body, self.status = True, head[9:12]
        ended = END in data
        found = data.count(EVENT) - ended
        self.tokens += found
        if found > 0:
            self.times.append(now)
        if ended:
            self.end(True)

    def connection_lost(self, exc):
        self.end(False)

    def end(self, complete):
        if not self.over:
            self.over = True
            self.complete = complete
            self.transport.close()
            self.done(self)


def request():
    """A request for a stream, as it is sent."""
    return (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        b"content-length: %d\r\n\r\n%b" % (len(BODY), BODY)
    )


async def main(host, port, streams, tokens, ramp):
    loop = asyncio.get_running_loop()
    finished = asyncio.Event()
    clients, failed = [], 0

    def done(client):
        clients.append(client)
        if len(clients) + failed == streams:
            finished.set()

    async def one(delay):
        nonlocal failed
        await asyncio.sleep(delay)
        began = time.perf_counter()
        try:
            _, client = await loop.create_connection(lambda: Client(request(), done), host, port)
            client.began = began
        except OSError:
            failed += 1
            if len(clients) + failed == streams:
                finished.set()

    start = time.perf_counter()
    tasks = [loop.create_task(one(ramp * n / streams)) for n in range(streams)]
    with suppress(TimeoutError):
        await asyncio.wait_for(finished.wait(), PATIENCE)
    seconds = time.perf_counter() - start
    for task in tasks:
        task.cancel()
    good = [c for c in clients if c.complete and c.status == b"200" and c.tokens == tokens]
    first = sorted(c.times[0] - c.began for c in good)
    gaps = sorted(b - a for c in good for a, b in zip(c.times, c.times[1:], strict=False))

    def at(values, share):
        return 1000 * values[min(len(values) - 1, int(len(values) * share))] if values else None

    print(
        json.dumps(
            {
                "streams": streams,
                "complete": len(good),
                "seconds": seconds,
                "tokens": sum(c.tokens for c in clients),
                "first_p50": at(first, 0.5),
                "first_p99": at(first, 0.99),
                "gap_p50": at(gaps, 0.5),
                "gap_p99": at(gaps, 0.99),
            }
        )
    )


if __name__ == "__main__":
    import uvloop

    uvloop.run(
        main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), float(sys.argv[5]))
    )
