"""The provider on a socket: in the running event loop, or in a thread for synchronous callers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any

from tournant.llm.mock import wording
from tournant.llm.mock.control import Control
from tournant.llm.mock.http import Connection
from tournant.llm.mock.listening import Listener
from tournant.llm.mock.provider import Provider
from tournant.llm.mock.settings import MockSettings

if TYPE_CHECKING:
    from tournant.llm.model import Model


class MockServer:
    """A provider to test against, in the running event loop.

    Enter it to begin to listen::

        async with MockServer(MockSettings(rpm=600, error_rate=0.01)) as server:
            client = Client(server.url, "mock")

    Args:
        settings: What it does. Default: answers everything at once.
        model: A model that answers in the place of the made-up answers. Whoever made it closes it.

    Raises:
        InvalidMockSettings: on entering, when it can't listen at the address.
    """

    def __init__(self, settings: MockSettings | None = None, model: Model | None = None) -> None:
        self.settings = MockSettings() if settings is None else settings
        self._model = model
        self._open: set[Connection] = set()
        self._provider: Provider | None = None
        self._listener: Listener | None = None

    async def __aenter__(self) -> MockServer:
        """Begin to listen."""
        loop = asyncio.get_running_loop()
        settings = self.settings
        provider = Provider(settings, self._model, loop, self._cut_all, self._go_down)

        def connected() -> Connection:
            provider.stats.connections += 1
            return Connection(provider.handle, _refusal, settings.max_body, self._open)

        self._listener = Listener(loop, connected, settings.host, settings.port)
        self._provider = provider
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop: connections are cut, models stop answering."""
        provider, listener = self._running()
        await listener.aclose()
        await provider.aclose()
        gone = [connection.gone.wait() for connection in self._open]
        for connection in list(self._open):
            connection.transport.abort()
        await asyncio.gather(*gone)

    @property
    def root(self) -> str:
        """The address without a path: ``http://127.0.0.1:PORT``; below it are ``/stats`` and ``/control``."""
        return self._running()[1].url

    @property
    def url(self) -> str:
        """The base URL for clients: ``http://127.0.0.1:PORT/v1``."""
        return self.root + "/v1"

    @property
    def port(self) -> int:
        """The port it listens on."""
        return self._running()[1].port

    def stats(self) -> dict[str, Any]:
        """Return what it has counted, as ``GET /stats`` does; `Stats` says what the names mean."""
        return self._running()[0].stats_now()

    def control(self, **orders: Any) -> dict[str, Any]:
        """Change it while it runs, as ``POST /control`` does; return the settings in force.

        Args:
            orders: Settings by their names in `MockSettings`; ``down`` (seconds); ``reset`` (one or a list of ``"stats"``,
                ``"limits"``, ``"settings"``, ``"connections"``).

        Raises:
            InvalidMockSettings: for a name or a value that can't be; then nothing has changed.
        """
        control = Control(self._running()[0])
        in_force = control.apply(orders)
        control.carry_out(orders)
        return in_force

    def _running(self) -> tuple[Provider, Listener]:
        if self._provider is None or self._listener is None:
            raise RuntimeError(
                "this MockServer is not running: enter it first, with `async with MockServer(...) as server:`"
            )
        return self._provider, self._listener

    def _cut_all(self) -> None:
        for connection in list(self._open):
            if not connection.closing:  # the one that carries the order's reply
                connection.reset()

    def _go_down(self, seconds: float) -> None:
        assert self._listener is not None
        self._listener.pause(seconds)
        self._cut_all()


def _refusal(status: int, message: str) -> bytes:
    return wording.error_body(message, "server_error" if status >= 500 else "invalid_request_error")


class ServingThread:
    """A provider that runs in a thread, as `serving` yields it. Its methods may be called from any thread.

    Args:
        server: The provider, in its own thread's event loop.
        call: Runs a function there, and returns what it returns.

    Attributes:
        url: The base URL for clients, with ``/v1``.
        root: The address without a path.
        port: The port it listens on.
    """

    def __init__(self, server: MockServer, call: Any) -> None:
        self._server, self._call = server, call
        self.url, self.root, self.port = server.url, server.root, server.port

    def stats(self) -> dict[str, Any]:
        """See `MockServer.stats`."""
        counted: dict[str, Any] = self._call(self._server.stats)
        return counted

    def control(self, **orders: Any) -> dict[str, Any]:
        """See `MockServer.control`."""
        in_force: dict[str, Any] = self._call(lambda: self._server.control(**orders))
        return in_force


@contextmanager
def serving(
    settings: MockSettings | None = None, model: Model | None = None
) -> Iterator[ServingThread]:
    """Run a provider in a thread with an event loop of its own, for as long as the block.

    For synchronous callers::

        with serving(MockSettings(rpm=600)) as server:
            requests.post(server.url + "/chat/completions", ...)

    Args:
        settings: What it does. Default: answers everything at once.
        model: A model that answers in the place of the made-up answers; it is used in that thread's loop.
    """
    from tournant.sync import LoopThread, outcome

    with LoopThread("tournant-mock-llm") as thread:

        async def begin() -> MockServer:
            return await MockServer(settings, model).__aenter__()

        server = outcome(thread.submit(begin))

        def call(function: Any) -> Any:
            async def there() -> Any:
                return function()

            return outcome(thread.submit(there))

        try:
            yield ServingThread(server, call)
        finally:
            outcome(thread.submit(server.__aexit__, None, None, None))
