"""Running a server: the process around the application, its limits, and its graceful end.

The first SIGTERM or SIGINT begins no more answers; those in progress have their grace period, then they end with an error
event. A second one ends them at once. Either way the exit code is 0.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import logging
import signal
import socket
import threading
from collections.abc import Callable, Generator
from types import FrameType
from typing import Any

from tournant.serve.app import App, make_app
from tournant.serve.connections import Connection, quiet_parsers
from tournant.serve.errors import MissingExtra, ServeError
from tournant.serve.settings import ServeSettings

try:
    import uvicorn
except ImportError:
    raise MissingExtra("the server", "uvicorn") from None

_BACKLOG = 4_096
_AFTER_GRACE = 3.0
_SPARE_DESCRIPTORS = 128
_SEND_BUFFER = 128 * 1024
_COLLECT_AT = (20_000, 20, 20)
_log = logging.getLogger("tournant.serve")


class CannotListen(ServeError):
    """The address can't be listened on."""


class Server(uvicorn.Server):
    """One server in this process.

    Args:
        app: The application.
        ready: Called with the server's URL when it listens.

    Attributes:
        url: Where it listens; empty before it does.
    """

    def __init__(self, app: App, ready: Callable[[str], None] | None = None) -> None:
        settings = app.state.settings
        self.app = app
        self.url = ""
        self._ready = ready
        self._hurry: asyncio.Event | None = None
        refused: set[Connection] = set()
        protocol: Any = functools.partial(Connection, app.state, refused)
        quiet_parsers()
        super().__init__(
            uvicorn.Config(
                app,
                host=settings.host.strip("[]"),
                port=settings.port,
                http=protocol,
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                backlog=_BACKLOG,
                timeout_keep_alive=max(1, round(settings.keep_alive_seconds)),
                # The grace period is ours; this is for what does not even end then.
                timeout_graceful_shutdown=round(_AFTER_GRACE),
            )
        )

    async def startup(self, sockets: Any = None) -> None:
        """Load the application, and listen."""
        self._hurry = asyncio.Event()
        try:
            await super().startup(sockets=sockets)
        except SystemExit:
            # uvicorn ends the process where something is to be told.
            failure = self.app.failure
            if failure is not None:
                raise failure from None
            settings = self.app.state.settings
            raise CannotListen(
                f"can't listen on {settings.host}:{settings.port}: the port is in use or not allowed; choose another with --port"
            ) from None
        for listener in [one for server in self.servers for one in server.sockets]:
            # Accepted connections inherit it: what the system holds for a reader that does not read is bounded as well.
            with contextlib.suppress(OSError):
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        if self.servers and self.servers[0].sockets:
            host, port = self.servers[0].sockets[0].getsockname()[:2]
            self.url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
            if self._ready is not None:
                self._ready(self.url)

    async def shutdown(self, sockets: Any = None) -> None:
        """End gracefully."""
        app, grace = self.app, self.app.state.settings.grace_seconds
        app.stop()
        for server in self.servers:
            server.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        assert self._hurry is not None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace):
                await _first_of(app.state.running.idle(), self._hurry.wait())
        app.cut()
        await super().shutdown(sockets)

    def stop(self) -> None:
        """Begin the end; the second time, hurry. From any thread that is not the loop's, use ``call_soon_threadsafe``."""
        if self.should_exit and self._hurry is not None:
            self._hurry.set()
        self.should_exit = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Take a signal."""
        self.stop()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Listen to signals while the server runs. They have done their work then, and are not raised again."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        watched = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self.handle_exit) for number in watched}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)


def run(settings: ServeSettings, ready: Callable[[str], None] | None = None) -> None:
    """Serve until a signal comes.

    Args:
        settings: What the server is told.
        ready: Called with the server's URL when it listens.

    Raises:
        InvalidSettings: the settings can't be.
        TournantError: the index, the embedder or the model can't be opened.
        CannotListen: the port is in use.
    """
    allow_connections(settings)

    def listening(url: str) -> None:
        # What is loaded stays, and need not be looked at again and again while streams make garbage.
        gc.collect()
        gc.freeze()
        gc.set_threshold(*_COLLECT_AT)
        if ready is not None:
            ready(url)

    server = Server(make_app(settings), listening)
    loop_factory: Any = None
    with contextlib.suppress(ImportError):
        import uvloop

        loop_factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(server.serve())


def allow_connections(settings: ServeSettings) -> None:
    """Raise the process's limit of open files to what the connections need, and say so where that can't be.

    Each answer needs two: the client's and the upstream's.
    """
    try:
        import resource
    except ImportError:
        return
    wanted = settings.max_connections + settings.max_streams + _SPARE_DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    if most < wanted:
        _log.warning(
            "this process may open %d files, and %d connections with %d answers need %d: raise the limit (ulimit -n), or lower "
            "--max-connections and --max-streams",
            most, settings.max_connections, settings.max_streams, wanted,
        )  # fmt: skip


async def _first_of(*waits: Any) -> None:
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
