"""An upstream that costs as little as Python allows: it answers every POST with a stream of events, and counts those cut off.

Runs as a process of its own: `python -m benchmarks.serve_upstream TOKENS INTERVAL_SECONDS`. It prints its port.
"""

import asyncio
import sys

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
TOKENS = 64
INTERVAL = 0.05


def event(data: bytes) -> bytes:
    line = b"data: " + data + b"\n\n"
    return b"%x\r\n%b\r\n" % (len(line), line)


TOKEN = event(
    b'{"id":"chatcmpl-1","object":"chat.completion.chunk","created":1764000000,"model":"m",'
    b'"choices":[{"index":0,"delta":{"content":" token"},"finish_reason":null}]}'
)
END = event(b"[DONE]") + b"0\r\n\r\n"


class Upstream(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport
        self.loop = asyncio.get_running_loop()
        self.buffer = b""
        self.left = 0
        self.paused = False
        self.waiting = False

    def data_received(self, data):
        self.buffer += data
        head, found, rest = self.buffer.partition(b"\r\n\r\n")
        if not found:
            return
        lower = head.lower()
        at = lower.find(b"content-length:")
        length = int(lower[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
        if len(rest) < length:
            return
        self.buffer = rest[length:]
        self.transport.write(HEAD)
        self.left = TOKENS
        if INTERVAL:
            self.due = self.loop.time() + INTERVAL
            self.loop.call_at(self.due, self.token)
        else:
            self.loop.call_soon(self.token)

    def pause_writing(self):
        self.paused = True

    def resume_writing(self):
        self.paused = False
        if self.waiting:
            self.waiting = False
            self.token()

    def token(self):
        if self.transport.is_closing():
            return
        if self.paused:
            self.waiting = True
            return
        self.transport.write(TOKEN)
        self.left -= 1
        if not self.left:
            self.transport.write(END)
        elif INTERVAL:
            self.due += INTERVAL
            self.loop.call_at(self.due, self.token)
        else:
            self.loop.call_soon(self.token)


async def main():
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Upstream, "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    import uvloop

    TOKENS, INTERVAL = int(sys.argv[1]), float(sys.argv[2])
    uvloop.run(main())
