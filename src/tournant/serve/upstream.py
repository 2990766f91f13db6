"""Connections to the upstream, driven by callbacks: what arrives is handed on in the very call in which it was read.

A reader with futures and wake-ups costs more than the token it carries. This is HTTP/1.1 with keep-alive, chunked replies and TLS,
for requests whose body is known; redirects are not followed and proxies not used.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Protocol
from urllib.parse import urlsplit

from tournant._version import __version__
from tournant.serve.errors import HTTPError, InvalidSettings, MissingExtra

try:
    import httptools
except ImportError:
    raise MissingExtra("the server", "httptools") from None

_MOST_HEADERS = 64 * 1024
_RESOLVED_FOR = 30.0
_IDLE_SECONDS = 30.0
_MOST_IDLE = 1_024


class Listener(Protocol):
    """Whoever waits for a reply. None of these may raise."""

    def head(self, status: int, headers: Mapping[bytes, bytes]) -> None:
        """Take the reply's status and its headers, their names in lower case."""

    def body(self, data: bytes) -> None:
        """Take a part of the reply's body."""

    def complete(self) -> None:
        """Take in that the reply is complete. Nothing comes after it."""

    def broken(self, why: str, untouched: bool) -> None:
        """Take in that the reply will never be complete. Nothing comes after it.

        Args:
            why: What happened, for a message.
            untouched: Whether a connection that had been kept was closed before a byte of the reply came: the request
                may be sent again.
        """


class Channel(asyncio.Protocol):
    """One connection; it carries one request at a time.

    Args:
        upstream: Where it goes back to when a reply is complete.
    """

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream
        self._listener: Listener | None = None
        self._until_eof = False
        self._reusable = False
        self._used = False
        self._touched = False
        self._paused = False
        self._linger: asyncio.TimerHandle | None = None
        self._headers: dict[bytes, bytes] = {}
        self._header_bytes = 0
        self._status = 0
        self.idle_since = 0.0
        # The pieces of a body that one read holds are handed on together: an event is often a piece of its own.
        self._pieces: list[bytes] = []
        self.on_body = self._pieces.append
        self._parser: Any = httptools.HttpResponseParser(self)
        self._feed: Any = self._parser.feed_data

    # For whoever uses it

    @property
    def closing(self) -> bool:
        """Whether nothing can be sent on it any more."""
        return self._transport.is_closing()

    def send(self, request: bytes, listener: Listener) -> None:
        """Send a request, and tell `listener` about its reply."""
        self._listener = listener
        self._touched = False
        self._transport.write(request)

    def pause(self) -> None:
        """Read nothing more for now."""
        if not self._paused and not self._transport.is_closing():
            self._paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        """Go on reading."""
        if self._paused:
            self._paused = False
            if not self._transport.is_closing():
                self._transport.resume_reading()

    def cut(self) -> None:
        """Drop the request and the connection, at once; the listener hears nothing more."""
        self._listener = None
        self._stop_lingering()
        self._transport.abort()

    def leave(self, seconds: float) -> None:
        """Listen no more, but give the reply `seconds` to be complete, so that the connection can be used again."""
        if self._listener is None:
            return
        self._listener = _NOBODY
        self.resume()
        self._linger = self._upstream.loop.call_later(seconds, self.cut)

    # From the transport

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin."""
        self._transport = transport
        self._upstream.connections += 1

    def data_received(self, data: bytes) -> None:
        """Take what was read."""
        self._touched = True
        if self._listener is None:
            self._transport.abort()  # it speaks without being asked
            return
        try:
            self._feed(data)
        except httptools.HttpParserError:
            self._break("it sent what is no HTTP")
        except httptools.HttpParserUpgrade:
            self._break("it wants to change the protocol")
        if self._pieces:
            self._hand_on()

    def connection_lost(self, error: Exception | None) -> None:
        """Take in that the connection is no more."""
        self._upstream.connections -= 1
        self._upstream.forget(self)
        self._stop_lingering()
        # The parser knows the connection: together they would wait for the garbage collection.
        self._parser = self._feed = None
        listener, self._listener = self._listener, None
        if listener is None:
            return
        if self._until_eof and error is None:
            listener.complete()
        else:
            listener.broken("the connection broke", self._used and not self._touched)

    # From the parser

    def on_message_begin(self) -> None:
        """Begin a reply."""
        self._headers = {}
        self._header_bytes = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take one header."""
        self._header_bytes += len(name) + len(value)
        if self._header_bytes < _MOST_HEADERS:
            self._headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        """Take the head of a reply."""
        self._status = self._parser.get_status_code()
        if self._status < 200:
            return
        framed = b"content-length" in self._headers or b"chunked" in self._headers.get(
            b"transfer-encoding", b""
        )
        self._until_eof = not framed and self._status not in (204, 304)
        self._reusable = framed and self._parser.should_keep_alive()
        if self._listener is not None:
            self._listener.head(self._status, self._headers)

    def on_message_complete(self) -> None:
        """End a reply."""
        if self._status < 200:
            return
        if self._pieces:
            self._hand_on()
        listener, self._listener = self._listener, None
        self._stop_lingering()
        if listener is None:
            return
        self._used = True
        if self._reusable:
            self.resume()
            self._upstream.keep(self)
        else:
            self._transport.close()
        listener.complete()

    # Inside

    def _hand_on(self) -> None:
        pieces = self._pieces
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        if self._listener is not None:
            self._listener.body(data)

    def _break(self, why: str) -> None:
        if self._pieces:
            self._hand_on()
        listener, self._listener = self._listener, None
        self._stop_lingering()
        self._transport.abort()
        if listener is not None:
            listener.broken(why, False)

    def _stop_lingering(self) -> None:
        if self._linger is not None:
            self._linger.cancel()
            self._linger = None


class Upstream:
    """An OpenAI-compatible API, as the relay sees it.

    Args:
        base: Its base URL.
        key: Its API key, or ``None``.
        connect_seconds: How long a connection may take.

    Attributes:
        connections: How many connections are open.
        opened: How many were ever opened.
        loop: The loop that they live on.
        name: The address, for messages: without a user's name or password.

    Raises:
        InvalidSettings: the URL can't be.
    """

    def __init__(self, base: str, key: str | None, connect_seconds: float) -> None:
        try:
            parts = urlsplit(base)
            port = parts.port
        except ValueError as error:
            raise InvalidSettings(f"llm={base!r} is no URL: {error}") from None
        if not parts.hostname or parts.username is not None or parts.query or parts.fragment:
            raise InvalidSettings(
                f"llm: give a URL of a scheme, a host and a path, such as http://127.0.0.1:8080/v1, not {parts.hostname!r} "
                "with a user, a query or a fragment"
            )
        if key is not None and not (key.isascii() and key.isprintable()):
            raise InvalidSettings(
                "the upstream's API key holds characters that no header can: check the variable"
            )
        self.connections = 0
        self.opened = 0
        self._tls = parts.scheme == "https"
        self._context: ssl.SSLContext | None = None
        self.loop: asyncio.AbstractEventLoop
        self._host = parts.hostname
        self._port = port or (443 if self._tls else 80)
        self._path = parts.path.rstrip("/")
        self._connect_seconds = connect_seconds
        self.name = f"{parts.scheme}://{parts.netloc}{self._path}"
        self._authorization = (
            b"" if key is None else b"authorization: Bearer " + key.encode() + b"\r\n"
        )
        self.has_key = key is not None
        self._idle: list[Channel] = []
        self._addresses: list[tuple[str, int]] = []
        self._resolved_at = -1e9
        self._resolving: asyncio.Task[None] | None = None
        self._common = (
            f" HTTP/1.1\r\nhost: {parts.netloc}\r\nuser-agent: tournant/{__version__}\r\n"
            "accept-encoding: identity\r\n"
        ).encode()

    async def start(self) -> None:
        """Begin on the running loop, and load what takes time: the certificates, where TLS is used."""
        self.loop = asyncio.get_running_loop()
        if self._tls:
            self._context = await asyncio.to_thread(ssl.create_default_context)

    async def aclose(self) -> None:
        """Close the connections that are not in use."""
        for channel in list(self._idle):
            channel.cut()
        self._idle.clear()
        if self._resolving is not None:
            self._resolving.cancel()
            with suppress(asyncio.CancelledError, OSError):
                await self._resolving

    def request(
        self, method: str, path: str, body: bytes, authorization: bytes | None = None
    ) -> bytes:
        """Return a request as it is sent.

        Args:
            method: ``GET`` or ``POST``.
            path: The path below the base URL, with a slash at its start.
            body: A JSON body; empty for ``GET``.
            authorization: The caller's own header, which is sent where there is no key.
        """
        head = [f"{method} {self._path}{path}".encode(), self._common]
        if self.has_key:
            head.append(self._authorization)
        elif authorization:
            head.append(b"authorization: " + authorization + b"\r\n")
        if method == "POST":
            head.append(b"content-type: application/json\r\ncontent-length: %d\r\n" % len(body))
        head.append(b"\r\n")
        head.append(body)
        return b"".join(head)

    async def channel(self, *, fresh: bool = False) -> Channel:
        """Return a connection: one that was kept, or (always with `fresh`) a new one.

        Raises:
            HTTPError: 502 when there is no connection to be had, 504 when it takes too long.
        """
        while self._idle and not fresh:
            channel = self._idle.pop()
            if not channel.closing:
                return channel
        return await self._open()

    def keep(self, channel: Channel) -> None:
        """Take a connection back whose reply is complete."""
        if len(self._idle) >= _MOST_IDLE:
            channel.cut()
            return
        channel.idle_since = time.monotonic()
        self._idle.append(channel)

    def forget(self, channel: Channel) -> None:
        """Take in that a connection is no more."""
        with suppress(ValueError):
            self._idle.remove(channel)

    def tick(self, now: float) -> None:
        """Close what was idle for long. The latest used stand at the end."""
        while self._idle and now - self._idle[0].idle_since > _IDLE_SECONDS:
            self._idle.pop(0).cut()

    # Connecting

    async def _open(self) -> Channel:
        loop = self.loop
        reason = "it has no address"
        try:
            async with asyncio.timeout(self._connect_seconds):
                for host, port in await self._resolve(loop):
                    try:
                        _, channel = await loop.create_connection(
                            self._new,
                            host,
                            port,
                            ssl=self._context if self._tls else None,
                            server_hostname=self._host if self._tls else None,
                        )
                    except OSError as error:  # TLS errors are among them
                        reason = error.strerror or str(error)
                    else:
                        self.opened += 1
                        return channel
        except TimeoutError:
            raise HTTPError(
                504,
                f"no connection to the upstream within {self._connect_seconds:g} s: try again later",
                "upstream_timeout",
            ) from None
        except socket.gaierror as error:
            reason = error.strerror or "its name is not known"
        raise HTTPError(
            502,
            f"the upstream can't be reached ({reason}): try again later",
            "upstream_unreachable",
        )

    def _new(self) -> Channel:
        return Channel(self)

    async def _resolve(self, loop: asyncio.AbstractEventLoop) -> list[tuple[str, int]]:
        if time.monotonic() - self._resolved_at > _RESOLVED_FOR:
            if self._resolving is None or self._resolving.done():
                self._resolving = loop.create_task(self._look_up(loop))
            # One look-up for everyone: whoever is cancelled does not take it from the others.
            await asyncio.shield(self._resolving)
        return self._addresses

    async def _look_up(self, loop: asyncio.AbstractEventLoop) -> None:
        found = await loop.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        self._addresses = [(str(address[0]), int(address[1])) for *_, address in found]
        self._resolved_at = time.monotonic()


class _Nobody:
    """Listens to the end of a reply that nobody needs."""

    def head(self, status: int, headers: Mapping[bytes, bytes]) -> None:
        """Pass over it."""

    def body(self, data: bytes) -> None:
        """Pass over it."""

    def complete(self) -> None:
        """Pass over it."""

    def broken(self, why: str, untouched: bool) -> None:
        """Pass over it."""


_NOBODY: Listener = _Nobody()
