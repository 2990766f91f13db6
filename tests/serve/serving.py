"""What the tests of the server share: the real server on a free port, an upstream that does as it is told, and a plain client.

All of it runs on one event loop, over real sockets.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

import uvloop

from tournant.serve import ServeSettings, make_app
from tournant.serve.run import Server

T = TypeVar("T")
PATIENCE = 20.0
CHAT = {"messages": [{"role": "user", "content": "Say something."}]}


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a test on the loop that the server has in earnest."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(asyncio.wait_for(main, 60))


async def until(condition: Callable[[], bool], seconds: float = PATIENCE) -> None:
    """Wait for something that another task is about to do."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.002)


# The server


@asynccontextmanager
async def serving(*, answered_by: Any = None, **options: Any) -> AsyncIterator[Server]:
    """Run a server with these settings."""
    settings = ServeSettings(**{"port": 0, "grace_seconds": 0, **options})
    listening = asyncio.Event()
    server = Server(make_app(settings, answered_by), lambda url: listening.set())
    task = asyncio.create_task(server.serve())
    waiting = asyncio.create_task(listening.wait())
    await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if task.done():
        await task
    try:
        yield server
    finally:
        server.stop()
        await asyncio.wait_for(task, PATIENCE)


# The upstream


class Call:
    """One request that the upstream got, and what it answers."""

    def __init__(self, head: bytes, body: bytes, writer: asyncio.StreamWriter) -> None:
        self.head = head
        self.body = body
        self.path = head.split(b" ", 2)[1].decode()
        self.writer = writer
        self.gone = asyncio.Event()
        self.go = asyncio.Event()  # for scripts that wait for the test's word

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    async def write(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def start(self, status: str = "200 OK", **headers: str) -> None:
        given = {"content-type": "text/event-stream", "transfer-encoding": "chunked"}
        given |= {name.replace("_", "-"): value for name, value in headers.items()}
        lines = "".join(f"{name}: {value}\r\n" for name, value in given.items() if value)
        await self.write(f"HTTP/1.1 {status}\r\n{lines}\r\n".encode())

    async def chunk(self, data: bytes) -> None:
        await self.write(b"%x\r\n%b\r\n" % (len(data), data))

    async def event(self, data: str | dict[str, Any]) -> None:
        text = data if isinstance(data, str) else json.dumps(data)
        await self.chunk(f"data: {text}\n\n".encode())

    async def token(self, text: str) -> None:
        await self.event(token(text))

    async def end(self) -> None:
        await self.write(b"0\r\n\r\n")

    async def reply(self, value: Any, status: str = "200 OK", **headers: str) -> None:
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        given = {"content-type": "application/json", "content-length": str(len(body))}
        given |= {name.replace("_", "-"): value for name, value in headers.items()}
        lines = "".join(f"{name}: {value}\r\n" for name, value in given.items())
        await self.write(f"HTTP/1.1 {status}\r\n{lines}\r\n".encode() + body)

    def cut(self) -> None:
        self.writer.transport.abort()


def token(text: str) -> dict[str, Any]:
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}],
    }


def whole(text: str, prompt: int = 3, written: int = 4) -> dict[str, Any]:
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text},
                "finish_reason": "stop",
            }
        ],
        "usage": {
            "prompt_tokens": prompt,
            "completion_tokens": written,
            "total_tokens": prompt + written,
        },
    }


class Upstream:
    """An upstream, written in asyncio's streams."""

    def __init__(self, script: Callable[[Call], Awaitable[None]]) -> None:
        self.script = script
        self.calls: list[Call] = []
        self.open = 0
        self.url = ""

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        call: Call | None = None
        task: asyncio.Task[None] | None = None
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = 0
                for line in head.lower().split(b"\r\n"):
                    if line.startswith(b"content-length:"):
                        length = int(line.partition(b":")[2])
                call = Call(head, await reader.readexactly(length), writer)
                if task is not None:
                    await task
                self.calls.append(call)
                task = asyncio.create_task(self.play(call))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.open -= 1
            if call is not None:
                call.gone.set()
            if task is not None:
                task.cancel()
                with suppress(asyncio.CancelledError, ConnectionError):
                    await task
            writer.close()

    async def play(self, call: Call) -> None:
        with suppress(ConnectionError):
            await self.script(call)


@asynccontextmanager
async def upstream(script: Callable[[Call], Awaitable[None]]) -> AsyncIterator[Upstream]:
    """Run an upstream that answers every request by `script`."""
    found = Upstream(script)
    tasks: set[asyncio.Task[None]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            with suppress(asyncio.CancelledError):
                await found.handle(reader, writer)
        finally:
            tasks.discard(task)

    server = await asyncio.start_server(handle, "127.0.0.1", 0, backlog=1024, limit=2**24)
    found.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    try:
        yield found
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def talk(call: Call, tokens: int = 3) -> None:
    """A script: some tokens, then the end."""
    if not call.json.get("stream"):
        await call.reply(whole("hello"))
        return
    await call.start()
    for number in range(tokens):
        await call.token(f"t{number} ")
    await call.event("[DONE]")
    await call.end()


async def provider(call: Call) -> None:
    """What the clients ask for."""
    if call.path.endswith("/models"):
        model = {"id": "m", "object": "model", "created": 1, "owned_by": "me"}
        await call.reply({"object": "list", "data": [model]})
    elif call.path.endswith("/embeddings"):
        data = [{"object": "embedding", "index": 0, "embedding": [0.5, 0.25]}]
        await call.reply(
            {
                "object": "list",
                "model": "m",
                "data": data,
                "usage": {"prompt_tokens": 1, "total_tokens": 1},
            }
        )
    else:
        await talk(call)


# The client


class Response:
    """A response whose head has been read."""

    def __init__(
        self, status: int, headers: dict[str, str], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:  # fmt: skip
        self.status = status
        self.headers = headers
        self.reader = reader
        self.writer = writer

    async def pieces(self) -> AsyncIterator[bytes]:
        """The chunks of the body, as they were sent."""
        if self.headers.get("transfer-encoding") == "chunked":
            while True:
                line = await self.reader.readline()
                if not line.endswith(b"\n"):
                    raise asyncio.IncompleteReadError(line, None)
                size = int(line, 16)
                data = await self.reader.readexactly(size)
                await self.reader.readexactly(2)
                if not size:
                    return
                yield data
        else:
            yield await self.reader.readexactly(int(self.headers["content-length"]))

    async def events(self) -> AsyncIterator[tuple[str, str]]:
        """The events: name and data."""
        rest = b""
        async for piece in self.pieces():
            rest += piece
            *whole_events, rest = rest.split(b"\n\n")
            for event in whole_events:
                name = data = ""
                for line in event.decode().splitlines():
                    field, _, value = line.partition(": ")
                    name, data = (value, data) if field == "event" else (name, value)
                yield name, data

    async def text(self) -> str:
        return b"".join([piece async for piece in self.pieces()]).decode()

    async def json(self) -> Any:
        return json.loads(await self.text())

    def leave(self) -> None:
        """Close the connection as a program that is killed does."""
        self.writer.transport.abort()


async def connect(server: Server) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, port = server.url.removeprefix("http://").rsplit(":", 1)
    return await asyncio.open_connection(host, int(port), limit=2**24)


async def send(
    server: Server, path: str, body: Any = None, method: str | None = None, **headers: str
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Send a request, and read nothing yet."""
    data = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    method = method or ("GET" if body is None else "POST")
    given = {"host": server.url.removeprefix("http://")}
    if body is not None:
        given |= {"content-type": "application/json", "content-length": str(len(data))}
    given |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = "".join(f"{name}: {value}\r\n" for name, value in given.items() if value)
    reader, writer = await connect(server)
    writer.write(f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode() + data)
    return reader, writer


async def read_head(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Response:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = {}
    for line in head[1:]:
        name, found, value = line.partition(":")
        if found:
            headers[name.lower()] = value.strip()
    return Response(int(head[0].split()[1]), headers, reader, writer)


@asynccontextmanager
async def asking(
    server: Server, path: str, body: Any = None, method: str | None = None, **headers: str
) -> AsyncIterator[Response]:
    """Ask, and close the connection at the end."""
    reader, writer = await send(server, path, body, method, **headers)
    try:
        yield await read_head(reader, writer)
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def ask(
    server: Server, path: str, body: Any = None, method: str | None = None, **headers: str
) -> tuple[int, dict[str, str], Any]:
    """Ask, and return status, headers and the body: parsed where it is JSON."""
    async with asking(server, path, body, method, **headers) as response:
        text = "" if response.headers.get("content-length") == "0" else await response.text()
        kind = response.headers.get("content-type", "")
        return (
            response.status,
            response.headers,
            json.loads(text) if "json" in kind and text else text,
        )


async def metric(server: Server, name: str, **headers: str) -> float:
    """Return the sum of a metric."""
    _, _, text = await ask(server, "/metrics", **headers)
    found = [line for line in text.splitlines() if line.split("{")[0].split(" ")[0] == name]
    assert found, f"no metric {name}"
    return sum(float(line.rsplit(" ", 1)[1]) for line in found)
