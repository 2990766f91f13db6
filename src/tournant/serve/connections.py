"""Connections with clients: how many there may be, how long a request may take to arrive, and how long a client may read nothing.

An HTTP protocol for uvicorn that adds what uvicorn leaves open. Nothing has a timer of its own: the server's ticker looks after all.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import Any

from tournant.serve.bodies import DIRECT
from tournant.serve.errors import HTTPError, MissingExtra, busy
from tournant.serve.presence import Presence
from tournant.serve.state import State

try:
    import uvicorn
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
    from uvicorn.server import ServerState
except ImportError as missing:
    raise MissingExtra("the server", missing.name or "uvicorn") from None

_LINGERING = 256
_PIPELINED = 8
_LINGER = 2.0
_WORDS = {
    400: b"Bad Request",
    408: b"Request Timeout",
    431: b"Request Header Fields Too Large",
    503: b"Service Unavailable",
}


class Connection(HttpToolsProtocol):
    """One connection.

    Args:
        state: The server.
        refused: The connections that were refused and are still open.
    """

    def __init__(
        self,
        state: State,
        refused: set[Connection],
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._state = state
        self._refused = refused
        self._answering: RequestResponseCycle | None = None
        self._counted = False
        self._deaf = False
        self._head_since: float | None = None
        self._head_bytes = 0
        self._blocked_since = 0.0
        self.blocked = False
        self._presences: set[Presence] = set()
        self._closing_since: float | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin, or refuse."""
        super().connection_made(transport)
        state, settings = self._state, self._state.settings
        now = self.loop.time()
        state.ticker.watched.add(self)
        if state.connections >= settings.max_connections:
            state.figures.refused_connections += 1
            error = busy(503, "the server has as many connections as it may: try again later", 1.0)
            self._refuse(error)
            return
        self._counted = True
        state.connections += 1
        self._head_since = now
        transport.set_write_buffer_limits(high=settings.client_buffer_bytes)

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._state.ticker.watched.discard(self)
        self._refused.discard(self)
        if self._counted:
            self._counted = False
            self._state.connections -= 1
        if self._answering is not None and not self._answering.response_complete:
            # uvicorn tells the request that was read last, which may still wait behind the one that is being answered.
            self._answering.disconnected = True
            self._answering.message_event.set()
        for presence in list(self._presences):
            presence.left()
        super().connection_lost(exc)
        # None of these is of use any more, and each knows the connection: no need to wait for the garbage collection.
        self._answering = self.cycle = self.scope = None  # type: ignore[assignment]
        self.pipeline.clear()
        self._unset_keepalive_if_required()

    def data_received(self, data: bytes) -> None:
        """Take what was read."""
        if self._deaf:
            return
        if self._head_since is not None:
            self._head_bytes += len(data)
        super().data_received(data)
        if self._head_since is not None and not self._deaf:
            most = self._state.settings.max_header_bytes
            if self._head_bytes > most:
                self._refuse(
                    HTTPError(
                        431, f"the request's head is larger than {most:,} bytes: send less of it"
                    )
                )

    def on_message_begin(self) -> None:
        """Begin a request."""
        super().on_message_begin()
        scope: Any = self.scope
        scope[DIRECT] = self
        self._head_since = self.loop.time()

    def on_headers_complete(self) -> None:
        """Take a request's head."""
        self._head_since = None
        self._head_bytes = 0
        if self._deaf:
            return
        super().on_headers_complete()
        if self._presences and self.pipeline:
            # Reading was paused until the answer in progress is complete; but who does not read does not see the client leave.
            if len(self.pipeline) > _PIPELINED:
                self._deaf = True
                self.transport.abort()
            else:
                self.flow.resume_reading()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._answering = cycle
        super()._start_asgi_task(cycle, app)

    def pause_writing(self) -> None:
        """Take in that the client does not read as fast as it is written to."""
        super().pause_writing()
        self.blocked = True
        self._blocked_since = self.loop.time()

    def resume_writing(self) -> None:
        """Take in that it does again."""
        self.blocked = False
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP."""
        self._refuse(HTTPError(400, "this is no HTTP request that the server understands"))

    def watch(self, presence: Presence) -> None:
        """Tell `presence` when the client leaves."""
        self._presences.add(presence)
        if self.transport.is_closing():
            self.loop.call_soon(presence.left)
        else:
            self.flow.resume_reading()  # nobody would hear of the end otherwise

    def unwatch(self, presence: Presence) -> None:
        """Tell it no more."""
        self._presences.discard(presence)

    def drop(self) -> None:
        """Break the connection off in the middle of a response."""
        self.transport.abort()

    def write_chunk(self, data: bytes) -> None:
        """Write a piece of a chunked body, as ``send`` would; see `tournant.serve.sse.ChunkWriter`."""
        if not self.transport.is_closing():
            self.transport.write(b"%x\r\n%b\r\n" % (len(data), data))

    def tick(self, now: float) -> None:
        """Close what has lasted too long."""
        settings = self._state.settings
        if self.blocked and now - self._blocked_since > settings.slow_reader_seconds:
            self._state.figures.slow_readers += 1
            self.transport.abort()
        elif self._head_since is not None and now - self._head_since > settings.header_seconds:
            self._state.figures.slow_requests += 1
            self._refuse(
                HTTPError(
                    408, f"the request's head was not complete after {settings.header_seconds:g} s"
                )
            )
        elif self._deaf or self.transport.is_closing():
            if self._closing_since is None:
                self._closing_since = now
            # What is written but not read keeps a closing connection open for ever.
            elif now - self._closing_since > (
                _LINGER if self._deaf else settings.slow_reader_seconds
            ):
                self.transport.abort()

    def _refuse(self, error: HTTPError) -> None:
        """Send an error and listen no more. The connection stays open for a moment, because closing at once would take the error back."""
        self._head_since = None
        self._deaf = True
        body = error.body()
        extra = "".join(f"{name}: {value}\r\n" for name, value in error.headers.items()).encode()
        self._unset_keepalive_if_required()
        if self.cycle is not None and not self.cycle.response_complete:
            self.transport.abort()  # a response is under way: nothing can be said in the middle of it
            return
        if len(self._refused) >= _LINGERING:
            self.transport.abort()
            return
        self._refused.add(self)
        self.transport.write(
            b"HTTP/1.1 %d %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n%b\r\n%b"
            % (error.status, _WORDS[error.status], len(body), extra, body)
        )
        with suppress(OSError, RuntimeError, NotImplementedError):
            self.transport.write_eof()


def quiet_parsers() -> None:
    """Let the libraries that read requests log only what is wrong with the server: what clients send could fill the log."""
    for name in ("uvicorn.error", "python_multipart"):
        logging.getLogger(name).setLevel(logging.ERROR)
