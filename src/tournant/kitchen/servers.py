"""The two servers that the cooks wait for: a database over a socket, and a place for uploads over HTTP.

They run in a child process, ``python -m tournant.kitchen.servers SECONDS``, so that what they compute takes no turn of the GIL from the
cooks. Each answers after as many seconds as a network and a busy machine behind it would take. They end with their
standard input, hence with whoever started them, however that ended.

The database speaks lines of JSON: ``{"sql": ..., "parameters": [...]}`` and ``{"rows": [...]}`` or ``{"error": ...}``. Uploads are HTTP/1.1
``POST`` requests with a ``Content-Length``; the answer is 201 with the number of bytes and their SHA-256.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from tournant.kitchen.errors import ServersFailed
from tournant.kitchen.plates import Address

_MENU = (
    ("bread", 250),
    ("fish soup", 980),
    ("omelette", 1150),
    ("pear tart", 690),
    ("salad", 840),
    ("water", 300),
)
#: Guests that have ordered something; a kitchen may have as many orders.
GUESTS = 100
_LARGEST_UPLOAD = 256 << 20


class Servers:
    """The child process with both servers, for as long as a ``with`` block.

    Args:
        wait: seconds that each answer takes.

    Attributes:
        database: address of the database server, once entered.
        uploads: address of the upload server, once entered.

    Raises:
        ServersFailed: on entering, when the process does not start.
    """

    database: Address
    uploads: Address

    def __init__(self, wait: float) -> None:
        self._wait = wait
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Servers:
        # The child finds this very Tournant, wherever it was imported from.
        home = str(Path(__file__).resolve().parent.parent.parent)
        path = os.pathsep.join(filter(None, [home, os.environ.get("PYTHONPATH")]))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tournant.kitchen.servers", repr(self._wait)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path},
            start_new_session=True,  # Ctrl-C reaches the whole group of a terminal; when the servers end is our business
        )
        assert self._process.stdout is not None
        try:
            line = self._process.stdout.readline()
        except BaseException:
            self.__exit__()
            raise
        try:
            ports = json.loads(line)
        except ValueError:
            code = self._process.wait()
            self.__exit__()
            raise ServersFailed(
                f"the kitchen's servers did not start (exit code {code}): see what `python -m tournant.kitchen.servers 0` says"
            ) from None
        self.database = ("127.0.0.1", ports["database"])
        self.uploads = ("127.0.0.1", ports["uploads"])
        return self

    def __exit__(self, *_: object) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()
        try:
            process.wait(10.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()

    @property
    def pid(self) -> int:
        """The child's process id; 0 when it does not run."""
        return self._process.pid if self._process is not None else 0

    def check(self) -> None:
        """Raise `ServersFailed` if the child has ended."""
        if self._process is None or self._process.poll() is not None:
            raise ServersFailed(
                "the process of the kitchen's servers has ended; start the kitchen again"
            )


def stocked() -> sqlite3.Connection:
    """Return a database with a menu and what each guest wants, which only answers questions."""
    database = sqlite3.connect(":memory:")
    database.execute("CREATE TABLE menu (id INTEGER PRIMARY KEY, name TEXT, price INTEGER)")
    database.execute("CREATE TABLE wanted (guest INTEGER, dish INTEGER, number INTEGER)")
    database.executemany("INSERT INTO menu (name, price) VALUES (?, ?)", _MENU)
    wanted = [
        (guest, dish + 1, 1 + (guest + dish) % 3)
        for guest in range(1, GUESTS + 1)
        for dish in range(len(_MENU))
        if (guest * 7 + dish * 3) % 5 < 2
    ]
    database.executemany("INSERT INTO wanted VALUES (?, ?, ?)", wanted)
    database.commit()
    database.execute("PRAGMA query_only = ON")
    return database


Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def database_server(database: sqlite3.Connection, wait: float) -> Answer:
    """Return what answers each connection's questions from `database`, each after `wait` seconds."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            reply: dict[str, Any]
            try:
                asked = json.loads(line)
                rows = database.execute(asked["sql"], asked.get("parameters", ())).fetchall()
                reply = {"rows": rows}
            except (ValueError, KeyError, TypeError, sqlite3.Error) as error:
                reply = {"error": f"{type(error).__name__}: {error}"}
            await asyncio.sleep(wait)
            writer.write(json.dumps(reply).encode() + b"\n")
            await writer.drain()

    return answer


def upload_server(wait: float) -> Answer:
    """Return what answers each connection's uploads, each after `wait` seconds."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while request := (await reader.readline()).split():
            length = -1
            while (line := (await reader.readline()).strip()) != b"":
                name, _, value = line.partition(b":")
                if name.lower() == b"content-length" and value.strip().isdigit():
                    length = int(value)
            if request[0] != b"POST" or not 0 <= length <= _LARGEST_UPLOAD:
                writer.write(
                    b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
                )
                return
            digest, left = hashlib.sha256(), length
            while left:
                part = await reader.read(min(left, 1 << 16))
                if not part:
                    return
                digest.update(part)
                left -= len(part)
            await asyncio.sleep(wait)
            body = json.dumps({"bytes": length, "sha256": digest.hexdigest()}).encode()
            head = f"HTTP/1.1 201 Created\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            writer.write(head.encode() + body)
            await writer.drain()

    return answer


def _closing(answer: Answer) -> Answer:
    """Close each connection in the end. A client that left is nobody's fault, nor is the end of the servers while somebody waits."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await answer(reader, writer)
        except (ConnectionError, ValueError, asyncio.LimitOverrunError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    return serve


async def _serve(wait: float) -> None:
    asked = _closing(database_server(stocked(), wait))
    uploaded = _closing(upload_server(wait))
    # A class that orders much at once must not be refused by a short backlog.
    database = await asyncio.start_server(asked, "127.0.0.1", 0, backlog=1024)
    uploads = await asyncio.start_server(uploaded, "127.0.0.1", 0, backlog=1024)
    ports = {"database": _port(database), "uploads": _port(uploads)}
    try:
        # Not `print`: what could not be written would be tried again, and complained of, at the end.
        os.write(1, json.dumps(ports).encode() + b"\n")
    except BrokenPipeError:
        return  # whoever started us has ended meanwhile
    await asyncio.to_thread(sys.stdin.buffer.read)
    database.close()
    uploads.close()


def _port(server: asyncio.Server) -> int:
    port: int = server.sockets[0].getsockname()[1]
    return port


def main() -> None:
    """Serve until standard input ends."""
    asyncio.run(_serve(float(sys.argv[1])))


if __name__ == "__main__":
    main()
