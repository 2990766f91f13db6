"""A provider on 127.0.0.1 that misbehaves on demand: a real socket server, byte for byte what the test says.

`FaultServer(*answers)` gives the first answer to the first request and so on; the last one is given to all that follow. An answer
is a coroutine function of an `Exchange`; the usual ones are made by the functions at the end.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any

CHAT = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "kitchen-1",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "The swing cook."},
            "finish_reason": "stop",
        }
    ],
    "usage": {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12},
}


@dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]
    data: bytes

    @property
    def body(self) -> Any:
        return json.loads(self.data)


class Exchange:
    """One request and the means to answer it."""

    def __init__(self, server: FaultServer, request: Request, reader: Any, writer: Any) -> None:
        self.server = server
        self.request = request
        self.reader = reader
        self.writer = writer
        self.keep = True

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def head(self, status: int = 200, kind: str = "application/json", **headers: str) -> None:
        """Send a head whose body ends with the connection, unless a length or chunks are announced."""
        lines = [f"HTTP/1.1 {status} Said", f"Content-Type: {kind}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        if not {"content_length", "transfer_encoding"} & {name.lower() for name in headers}:
            lines.append("Connection: close")
            self.keep = False
        await self.send(("\r\n".join(lines) + "\r\n\r\n").encode())

    async def whole(
        self, status: int, data: bytes, kind: str = "application/json", **headers: str
    ) -> None:
        await self.head(status, kind, content_length=str(len(data)), **headers)
        await self.send(data)

    async def chunk(self, data: bytes) -> None:
        await self.send(b"%x\r\n%b\r\n" % (len(data), data))

    async def until_left(self) -> None:
        """Wait until the client has closed the connection."""
        self.keep = False
        self.server.waiting.set()
        try:
            while await self.reader.read(65_536):
                pass
        except ConnectionError:
            pass
        self.server.left.set()

    def reset(self) -> None:
        """Close with RST in place of FIN."""
        self.keep = False
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


Answer = Callable[[Exchange], Awaitable[None]]


class FaultServer:
    """Use it with ``async with``; `url` ends in ``/v1``.

    Attributes:
        requests: Every request that came.
        connections: How many connections were made.
        open: How many of them are open.
        waiting: Set when an answer waits for the client to leave.
        left: Set when a client has left in the middle of an answer.
    """

    def __init__(self, *answers: Answer) -> None:
        self.answers = list(answers)
        self.requests: list[Request] = []
        self.connections = self.open = 0
        self.waiting, self.left = asyncio.Event(), asyncio.Event()
        self._tasks: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    async def __aenter__(self) -> FaultServer:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, limit=2**24)
        port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}/v1"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        tasks = dict(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for writer in tasks.values():
            writer.close()  # that of a task which never began
        await asyncio.gather(*(w.wait_closed() for w in tasks.values()), return_exceptions=True)
        await self._server.wait_closed()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Not a coroutine: asyncio logs a handler of its own that ends cancelled.
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._tasks[task] = writer
        task.add_done_callback(lambda _: self._tasks.pop(task, None))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open += 1
        try:
            while (request := await _read(reader)) is not None:
                answer = self.answers[min(len(self.requests), len(self.answers) - 1)]
                self.requests.append(request)
                exchange = Exchange(self, request, reader, writer)
                await answer(exchange)
                if not exchange.keep:
                    break
        except (ConnectionError, asyncio.IncompleteReadError):
            self.left.set()
        finally:
            self.open -= 1
            writer.close()
            try:
                await writer.wait_closed()
            except ConnectionError:
                pass


async def _read(reader: asyncio.StreamReader) -> Request | None:
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    except asyncio.IncompleteReadError:
        return None
    first, *lines = head.rstrip().split("\r\n")
    method, path, _ = first.split(" ")
    headers = {}
    for line in lines:
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    data = await reader.readexactly(int(headers.get("content-length", 0)))
    return Request(method, path, headers, data)


async def refused_url() -> str:
    """The address of a port on which nobody listens."""
    server = await asyncio.start_server(lambda r, w: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    return f"http://127.0.0.1:{port}/v1"


# Answers


def says(body: Any = CHAT, status: int = 200, **headers: str) -> Answer:
    """A JSON body, whole."""

    async def answer(to: Exchange) -> None:
        await to.whole(status, json.dumps(body).encode(), **headers)

    return answer


def sends(data: bytes, status: int = 200, kind: str = "application/json") -> Answer:
    """A body of any kind, whole."""

    async def answer(to: Exchange) -> None:
        await to.whole(status, data, kind)

    return answer


def openai_error(
    status: int, code: str | None, message: str, kind: str = "invalid_request_error", **headers: str
) -> Answer:
    """An error in OpenAI's shape."""
    error = {"message": message, "type": kind, "param": None, "code": code}
    return says({"error": error}, status, **headers)


def anthropic_error(status: int, kind: str, message: str, **headers: str) -> Answer:
    """An error in Anthropic's shape."""
    return says(
        {"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_1"},
        status,
        **headers,
    )


async def resets(to: Exchange) -> None:
    """The connection is reset before a byte of the reply."""
    to.reset()


async def closes(to: Exchange) -> None:
    """The connection is closed before a byte of the reply."""
    to.keep = False


async def hangs(to: Exchange) -> None:
    """No reply ever comes."""
    await to.until_left()


async def hangs_after_head(to: Exchange) -> None:
    """The head comes, the body never."""
    await to.head(content_length="500")
    await to.until_left()


async def cut_body(to: Exchange) -> None:
    """The body is shorter than announced, and the connection closes."""
    to.keep = False
    data = json.dumps(CHAT).encode()
    await to.head(content_length=str(len(data)))
    await to.send(data[: len(data) // 2])


async def no_http(to: Exchange) -> None:
    """What comes back is not HTTP."""
    to.keep = False
    await to.send(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")


async def echoes_key(to: Exchange) -> None:
    """A 401 that repeats the header it was sent, as some gateways do."""
    said = to.request.headers["authorization"]
    key = said.removeprefix("Bearer ")
    await to.whole(
        401,
        json.dumps(
            {"error": {"message": f"bad header {said!r}", "code": key, "type": key}}
        ).encode(),
        x_request_id="req-7",
    )


def half_json() -> Answer:
    """Half a JSON, properly announced and complete as HTTP."""
    data = json.dumps(CHAT).encode()
    return sends(data[: len(data) // 2])


def html(status: int = 200) -> Answer:
    """A page for people."""
    return sends(b"<!doctype html><html><title>Log in</title></html>", status, "text/html")


def event(text: str | None = None, finish: str | None = None, **more: Any) -> bytes:
    """One event of a streamed chat."""
    delta = {} if text is None else {"content": text}
    body = {
        "object": "chat.completion.chunk",
        "model": "kitchen-1",
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
        **more,
    }
    return b"data: " + json.dumps(body).encode() + b"\n\n"


ROLE = b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}\n\n'
USAGE = (
    b'data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":5,"total_tokens":12}}\n\n'
)
DONE = b"data: [DONE]\n\n"
WHOLE = (ROLE, event("The "), event("swing "), event("cook."), event(finish="stop"), USAGE, DONE)


def streams(
    *pieces: bytes, end: str = "whole", kind: str = "text/event-stream", chunked: bool = True
) -> Answer:
    """A streamed answer.

    Args:
        pieces: Sent one by one.
        end: ``"whole"`` ends the body as HTTP asks, ``"close"`` closes the connection in its midst, ``"reset"`` resets it,
            ``"hang"`` sends nothing more.
        kind: The content type.
        chunked: Whether the body is sent in chunks; otherwise it ends with the connection.
    """

    async def answer(to: Exchange) -> None:
        if chunked:
            await to.head(200, kind, transfer_encoding="chunked")
        else:
            await to.head(200, kind)
        for piece in pieces:
            await (to.chunk(piece) if chunked else to.send(piece))
        if end == "whole" and chunked:
            await to.send(b"0\r\n\r\n")
        elif end == "hang":
            await to.until_left()
        elif end == "reset":
            # Not before the client has what was sent: a reset throws away what is on its way.
            to.server.waiting.set()
            await to.server.left.wait()
            to.reset()
        else:
            to.keep = False

    return answer


def endless(pieces: Iterable[bytes]) -> Answer:
    """A stream that goes on until the client leaves."""

    async def answer(to: Exchange) -> None:
        await to.head(200, "text/event-stream", transfer_encoding="chunked")
        for piece in pieces:
            await to.chunk(piece)
        await to.until_left()

    return answer


def trickle(data: bytes, kind: str = "text/event-stream") -> Answer:
    """A body byte by byte, each in a packet of its own."""

    async def answer(to: Exchange) -> None:
        to.writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await to.head(200, kind, transfer_encoding="chunked")
        for place in range(len(data)):
            await to.chunk(data[place : place + 1])
            await asyncio.sleep(0)
        await to.send(b"0\r\n\r\n")

    return answer
