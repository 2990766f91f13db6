"""The listening socket: accepting thousands of connections, and being down for a while on the same port.

It accepts by itself rather than by ``loop.create_server``, for two reasons: it closes at once, so that a provider that is down
refuses connections at once; and it can say what to do when the process runs out of file descriptors.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Callable
from typing import Any, cast

from tournant.llm.mock.settings import InvalidMockSettings

log = logging.getLogger("tournant.llm.mock")

#: The system cuts this down to its own bound (`net.core.somaxconn`).
BACKLOG = 65_535
_MOST_ACCEPTS = 256
#: Seconds until the next try, when there was no descriptor or no port.
_AGAIN = 0.1
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Listener:
    """A listening socket.

    Args:
        loop: The event loop that serves its connections.
        make: Makes the protocol of a connection.
        host: The address.
        port: The port; 0 for a free one.

    Attributes:
        host: The address, as it was given.
        port: The port.

    Raises:
        InvalidMockSettings: when it can't listen there.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        make: Callable[[], asyncio.Protocol],
        host: str,
        port: int,
    ) -> None:
        self._loop, self._make = loop, make
        self._socket: socket.socket | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._opening: set[asyncio.Task[object]] = set()
        self._warned = False
        self.host = host
        try:
            family, _, _, _, address = socket.getaddrinfo(
                host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            self._family, self._address = family, cast("Any", address)
            self._socket = self._bound()
            self._socket.listen(BACKLOG)
        except OSError as error:
            self.close()
            reason = error.strerror or str(error)
            raise InvalidMockSettings(
                f"can't listen on {host} port {port}: {reason}; give another --port (0 takes a free one) or --host"
            ) from None
        self._address = self._socket.getsockname()
        self.port: int = self._address[1]
        self._loop.add_reader(self._socket.fileno(), self._accept)

    @property
    def url(self) -> str:
        """The address as the beginning of a URL."""
        name = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{name}:{self.port}"

    def close(self) -> None:
        """Stop listening for good."""
        self._forget_timer()
        self._drop()

    async def aclose(self) -> None:
        """Stop listening for good, and wait for the connections that are just being opened."""
        self.close()
        await asyncio.gather(*self._opening, return_exceptions=True)

    def pause(self, seconds: float) -> None:
        """Refuse connections for some seconds; the port stays ours where the system allows it."""
        self._forget_timer()
        self._drop()
        try:
            # Bound, and not listening: connections are refused, and nobody else is given the port.
            self._socket = self._bound()
        except OSError:
            self._socket = None
        self._timer = self._loop.call_later(seconds, self._resume)

    def _resume(self) -> None:
        self._timer = None
        try:
            if self._socket is None:
                self._socket = self._bound()
            self._socket.listen(BACKLOG)
        except OSError as error:
            self._warn(f"can't listen on port {self.port} again yet: {error.strerror}; trying on")
            self._drop()
            self._timer = self._loop.call_later(_AGAIN, self._resume)
            return
        self._loop.add_reader(self._socket.fileno(), self._accept)

    def _bound(self) -> socket.socket:
        made = socket.socket(self._family, socket.SOCK_STREAM)
        try:
            made.setblocking(False)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind(self._address)
        except OSError:
            made.close()
            raise
        return made

    def _drop(self) -> None:
        if self._socket is not None:
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None

    def _forget_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _accept(self) -> None:
        for _ in range(_MOST_ACCEPTS):
            if self._socket is None:
                return
            try:
                accepted, _ = self._socket.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in _EXHAUSTED:
                    raise
                self._exhausted(error)
                return
            accepted.setblocking(False)
            task: asyncio.Task[object] = self._loop.create_task(self._open(accepted))
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)

    async def _open(self, accepted: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._make, accepted)
        except OSError:
            accepted.close()  # it was gone before we came to it

    def _exhausted(self, error: OSError) -> None:
        assert self._socket is not None
        self._warn(
            f"no further connection can be accepted: {error.strerror}. Those that wait are accepted as others close; "
            "raise the bound of this process (`ulimit -n`), or use fewer connections"
        )
        # The connection stays in the backlog, and would wake us again at once.
        listening = self._socket
        self._loop.remove_reader(listening.fileno())

        def again() -> None:
            self._timer = None
            if self._socket is listening:
                self._loop.add_reader(listening.fileno(), self._accept)

        self._timer = self._loop.call_later(_AGAIN, again)

    def _warn(self, message: str) -> None:
        if not self._warned:
            self._warned = True
            log.warning("mock-llm: %s", message)
