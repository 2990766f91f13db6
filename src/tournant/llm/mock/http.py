"""HTTP/1.1 for one connection: requests come out of it parsed, replies and streams go in.

Written on asyncio's protocols with httptools (llhttp, the parser of Node.js and uvicorn), because a general web server costs more
per request than everything else here: see `docs/design.md`. It knows nothing of models or limits.

Keep-alive and pipelining (answered in order), bodies with a length or chunked, ``Expect: 100-continue``, HTTP/1.0, ``HEAD``;
what is malformed is answered 400, a header section above 64 KiB 431, a body above the cap 413, and the connection is closed. There are
no idle timeouts: whoever tests against this provider may be as slow as they like.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
import time
from collections import deque
from collections.abc import Callable
from email.utils import formatdate
from http import HTTPStatus

from tournant.llm.errors import MissingExtra

try:
    import httptools
except ImportError as missing:
    raise MissingExtra("the provider to test against", missing.name or "httptools", "llm") from None

log = logging.getLogger("tournant.llm.mock")

JSON, HTML_TYPE, EVENTS = b"application/json", b"text/html; charset=utf-8", b"text/event-stream"
_LONGEST_HEAD = 64 * 1024
#: Replies that wait behind one another on a connection before it is read no further.
_MOST_QUEUED = 64
#: Seconds for a client to read why it was refused, before its connection is cut.
_LINGER = 2.0
_RESET = struct.pack("ii", 1, 0)
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_LINES = {
    int(status): b"HTTP/1.1 %d %b\r\n" % (status, status.phrase.encode()) for status in HTTPStatus
}

Handler = Callable[["Exchange"], None]
Refuser = Callable[[int, str], bytes]

_dated: tuple[int, bytes] = (0, b"")


def _date() -> bytes:
    global _dated
    now = int(time.time())
    if now != _dated[0]:
        _dated = (now, b"date: %b\r\n" % formatdate(now, usegmt=True).encode())
    return _dated[1]


class Exchange:
    """One request and its reply. Every method does nothing once the client has left.

    Attributes:
        method: ``GET``, ``POST``, ...
        path: The path, without the query.
        authorization: The header of that name, as it came.
        body: The request's body.
        on_left: Called once if the client leaves before the reply is complete.
        on_ready: Called when a client that read too slowly has caught up, see `ready`.
        over: Whether the reply is complete, or the client gone.
    """

    __slots__ = (
        "_chunked", "_connection", "_keep", "_old", "authorization", "body", "method", "on_left", "on_ready", "over", "path",
    )  # fmt: skip

    def __init__(
        self,
        connection: Connection,
        method: str,
        path: str,
        authorization: bytes,
        body: bytes,
        keep: bool,
        old: bool,
    ) -> None:
        self._connection = connection
        self._keep, self._old, self._chunked = keep, old, False
        self.method, self.path, self.authorization, self.body = method, path, authorization, body
        self.on_left: Callable[[], None] | None = None
        self.on_ready: Callable[[], None] | None = None
        self.over = False

    @property
    def ready(self) -> bool:
        """Whether the client has read most of what was sent; if not, `on_ready` will be called."""
        return not self._connection.paused

    @property
    def waiting(self) -> int:
        """Bytes that were sent and that the client has not read."""
        return 0 if self.over else self._connection.transport.get_write_buffer_size()

    @property
    def lost(self) -> bool:
        """Whether the connection is known to be gone, though nobody has been told so yet: the loop has to turn for that."""
        return not self.over and self._connection.transport.is_closing()

    def close_after(self) -> None:
        """Close the connection after the reply."""
        self._keep = False

    def reply(self, status: int, body: bytes, headers: bytes = b"", kind: bytes = JSON) -> None:
        """Send the whole reply."""
        if self.over:
            return
        head = b"%b%bcontent-type: %b\r\ncontent-length: %d\r\n%b%b\r\n" % (
            _LINES[status], _date(), kind, len(body), headers, self._connection_header(),
        )  # fmt: skip
        self._connection.transport.write(head if self.method == "HEAD" else head + body)
        self._end()

    def start(self, headers: bytes = b"", first: bytes = b"", kind: bytes = EVENTS) -> None:
        """Begin a reply whose length nobody knows yet, and send its first part."""
        if self.over:
            return
        self._chunked = not self._old
        if self._old:
            self._keep = False
        coding = b"transfer-encoding: chunked\r\n" if self._chunked else b""
        head = b"%b%bcontent-type: %b\r\ncache-control: no-cache\r\n%b%b%b\r\n" % (
            _LINES[200], _date(), kind, coding, headers, self._connection_header(),
        )  # fmt: skip
        self._connection.transport.write(head + self._part(first))

    def send(self, data: bytes) -> None:
        """Send a part of a reply that was begun."""
        if not self.over and data:
            self._connection.transport.write(self._part(data))

    def finish(self, data: bytes = b"") -> None:
        """Send the last part."""
        if not self.over:
            end = b"0\r\n\r\n" if self._chunked else b""
            self._connection.transport.write(self._part(data) + end)
            self._end()

    def cut(self) -> None:
        """End the connection in the middle of the reply, after what was sent."""
        if not self.over:
            self.over = True
            self._connection.transport.close()

    def reset(self) -> None:
        """Reset the connection: the client gets an error of its own operating system."""
        if not self.over:
            self.over = True
            self._connection.reset()

    def left(self) -> None:
        """The connection is gone."""
        if not self.over:
            self.over = True
            if self.on_left is not None:
                self.on_left()

    def _part(self, data: bytes) -> bytes:
        return b"%x\r\n%b\r\n" % (len(data), data) if self._chunked and data else data

    def _connection_header(self) -> bytes:
        if not self._keep:
            return b"connection: close\r\n"
        return b"connection: keep-alive\r\n" if self._old else b""

    def _end(self) -> None:
        self.over = True
        self._connection.done(self._keep)


class Connection(asyncio.Protocol):
    """One client's connection.

    Args:
        handler: Gets every request, one at a time; may answer at once or later.
        refuse: Makes the body of a refusal from its status and message.
        longest: Bytes of the longest body.
        all_open: The set of connections that are open, to which this one adds itself.

    Attributes:
        transport: The connection itself.
        paused: Whether the client reads too slowly.
        closing: Whether nothing more is answered here.
        gone: Set when the connection is.
    """

    def __init__(
        self, handler: Handler, refuse: Refuser, longest: int, all_open: set[Connection]
    ) -> None:
        self._handler, self._refuse, self._longest, self._open = handler, refuse, longest, all_open
        self._parser = httptools.HttpRequestParser(self)
        self._queue: deque[Exchange] = deque()
        self._active: Exchange | None = None
        self._pumping = self.closing = self._held = False
        self._refused: tuple[int, str] | None = None
        self._in_head, self._unfinished, self._head_size = True, 0, 0
        self._url: list[bytes] = []
        self._authorization, self._framing, self._expects = b"", b"", False
        self._body: list[bytes] = []
        self._body_size = 0
        self.paused = False
        self.gone = asyncio.Event()
        self.transport: asyncio.Transport

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Note that the connection is there."""
        self.transport = transport  # type: ignore[assignment]
        self._open.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        """Tell whoever answers that nobody waits for it."""
        self._open.discard(self)
        self.closing = True
        self.gone.set()
        self._queue.clear()
        active, self._active = self._active, None
        if active is not None:
            active.left()

    def pause_writing(self) -> None:
        """The client reads too slowly."""
        self.paused = True

    def resume_writing(self) -> None:
        """The client has caught up."""
        self.paused = False
        if self._active is not None and self._active.on_ready is not None:
            self._active.on_ready()

    def data_received(self, data: bytes) -> None:
        """Parse what came, and answer what is complete."""
        if self.closing or self._refused:
            return
        if self._in_head:
            # The parser keeps an unfinished header line without a bound, so the bound is kept here.
            self._unfinished += len(data)
        try:
            self._feed(data)
        except httptools.HttpParserError as error:
            self._refuse_once(400, f"This is no HTTP/1.1 request: {error}")
        if self._in_head and self._unfinished > _LONGEST_HEAD:
            self._refuse_long_head()
        self._pump()

    def _feed(self, data: bytes) -> None:
        while True:
            try:
                self._parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as pause:
                # Nobody is obliged to change protocols (RFC 9110, 7.8), and some clients ask for HTTP/2 every time.
                if self._parser.get_method() == b"CONNECT":
                    self._refuse_once(400, "This provider is no proxy: send the request itself")
                    return
                data = self._plain_head() + data[pause.args[0] :]
                self._parser = httptools.HttpRequestParser(self)

    def _plain_head(self) -> bytes:
        """Return the head that was just read, without the wish for another protocol: the parser skips such a body."""
        authorization = (
            b"authorization: %b\r\n" % self._authorization if self._authorization else b""
        )
        return b"%b %b HTTP/1.1\r\n%b%b\r\n" % (
            self._parser.get_method(), b"".join(self._url), authorization, self._framing,
        )  # fmt: skip

    def _refuse_once(self, status: int, message: str) -> None:
        if self._refused is None:
            self._refused = (status, message)

    def _refuse_long_head(self) -> None:
        self._refuse_once(431, f"The headers are longer than {_LONGEST_HEAD} bytes: send fewer")

    # What the parser calls.

    def on_message_begin(self) -> None:
        """A request begins."""
        self._url.clear()
        self._body.clear()
        self._body_size = self._head_size = 0
        self._authorization, self._framing, self._expects = b"", b"", False

    def on_url(self, url: bytes) -> None:
        """Take a part of the address."""
        self._head_size += len(url)
        self._url.append(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header."""
        size = len(name)
        self._head_size += size + len(value)
        if size == 13 and name.lower() == b"authorization":
            self._authorization = value
        elif size == 6 and name.lower() == b"expect":
            self._expects = value.lower() == b"100-continue"
        elif size == 14 and name.lower() == b"content-length":
            self._framing += b"content-length: %b\r\n" % value
            if int(value) > self._longest:
                self._too_long()
        elif size == 17 and name.lower() == b"transfer-encoding":
            self._framing += b"transfer-encoding: %b\r\n" % value

    def on_headers_complete(self) -> None:
        """Go on to the body."""
        self._in_head, self._unfinished = False, 0
        if self._head_size > _LONGEST_HEAD:
            self._refuse_long_head()
        if self._expects and self._refused is None and self._active is None:
            self.transport.write(_CONTINUE)

    def on_body(self, data: bytes) -> None:
        """Take a part of the body."""
        self._body_size += len(data)
        if self._body_size > self._longest:
            self._body.clear()
            self._too_long()
        else:
            self._body.append(data)

    def _too_long(self) -> None:
        self._refuse_once(413, f"The body is longer than {self._longest} bytes: send less")

    def on_message_complete(self) -> None:
        """Put the request in line."""
        self._in_head = True
        parser = self._parser
        if self._refused is not None or parser.should_upgrade():
            return
        url = self._url[0] if len(self._url) == 1 else b"".join(self._url)
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self._queue.append(
            Exchange(
                self,
                parser.get_method().decode("latin-1"),
                url.partition(b"?")[0].decode("latin-1"),
                self._authorization,
                body,
                parser.should_keep_alive(),
                parser.get_http_version() == "1.0",
            )
        )

    # What replies call.

    def done(self, keep: bool) -> None:
        """A reply is complete: go on to the next request, or close."""
        self._active = None
        if not keep:
            self._close()
        elif not self._pumping:
            self._pump()

    def reset(self) -> None:
        """Drop the connection without a word: the client sees a reset."""
        self.closing = True
        sock = self.transport.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.transport.abort()

    def _pump(self) -> None:
        self._pumping = True
        try:
            while self._active is None and self._queue and not self.closing:
                self._answer(self._queue.popleft())
        finally:
            self._pumping = False
        if self.closing:
            return
        if self._refused is not None and self._active is None:
            status, message = self._refused
            last = Exchange(self, "GET", "", b"", b"", keep=False, old=False)
            last.reply(status, self._refuse(status, message))
            return
        # A client that pipelines without end is read no further for a while. That we would not see it leave is no loss.
        if not self._held and len(self._queue) > _MOST_QUEUED:
            self._held = True
            self.transport.pause_reading()
        elif self._held and not self._queue:
            self._held = False
            self.transport.resume_reading()

    def _answer(self, exchange: Exchange) -> None:
        self._active = exchange
        try:
            self._handler(exchange)
        except Exception:
            log.exception(
                "the provider to test against failed at %s %s", exchange.method, exchange.path
            )
            if not exchange.over:
                exchange.close_after()
                exchange.reply(
                    500, self._refuse(500, "The provider to test against failed; its log says why")
                )

    def _close(self) -> None:
        """Close so that the client reads the reply even while it is still sending."""
        self.closing = True
        self._queue.clear()
        if self._refused is None:
            self.transport.close()
            return
        # Closing with data unread would reset the connection, and the reply would be lost with it.
        self.transport.write_eof()
        asyncio.get_running_loop().call_later(_LINGER, self.transport.abort)
