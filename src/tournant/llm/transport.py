"""The HTTP side of the client: one aiohttp session for each event loop, and what its exceptions mean.

This module and `stream` are the only ones of the client that know aiohttp well.
"""

from __future__ import annotations

import asyncio
import errno
import io
import ipaddress
import threading
from collections.abc import AsyncGenerator, Mapping
from typing import NamedTuple

from tournant.llm.errors import ConnectionFailed, LLMError, LLMTimeout
from tournant.llm.faults import Faults
from tournant.llm.packages import URL, aiohttp

_LARGE_BODY = 2**20
"""From this size on aiohttp wants a body in pieces, so that writing it does not hold up the loop."""


class _Kept(NamedTuple):
    session: aiohttp.ClientSession
    keeper: AsyncGenerator[None, None]


class Connections:
    """The connections of one client: a pool for each event loop that uses it, opened when it is first needed.

    A loop's pool is closed by `aclose`, and in any case before the loop is: by ``asyncio.run`` and its kin, which close every
    async generator that is still open. So a client may be used in one ``asyncio.run`` after the other without being closed.

    Args:
        headers: Sent with every request.
        most: How many connections a loop may have at most; ``None`` for as many as there are calls.
        connect: Seconds for a new connection; ``None`` waits for ever.
        proxy: The URL of a proxy, or ``None``.
    """

    def __init__(
        self,
        headers: Mapping[str, str],
        most: int | None,
        connect: float | None,
        proxy: str | None,
    ) -> None:
        self._headers = dict(headers)
        self._most = most
        self._connect = connect
        self._proxy = proxy
        self._kept: dict[asyncio.AbstractEventLoop, _Kept] = {}
        self._lock = threading.Lock()

    def session(self) -> aiohttp.ClientSession | None:
        """Return the running loop's session, or ``None`` when `open` has to be awaited first."""
        kept = self._kept.get(asyncio.get_running_loop())
        return None if kept is None or kept.session.closed else kept.session

    async def open(self) -> aiohttp.ClientSession:
        """Open a session for the running loop."""
        loop = asyncio.get_running_loop()
        # Waiting for a place in a pool of limited size is no part of connecting.
        timeout = (
            aiohttp.ClientTimeout(total=None, connect=self._connect)
            if self._most is None
            else aiohttp.ClientTimeout(total=None, sock_connect=self._connect)
        )
        session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=self._most or 0, ttl_dns_cache=60),
            headers=self._headers,
            timeout=timeout,
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=("Accept-Encoding",),
            proxy=self._proxy,
        )
        keeper = _keep(session)
        await anext(keeper)
        with self._lock:
            for other in [other for other in self._kept if other.is_closed()]:
                del self._kept[other]
            self._kept[loop] = _Kept(session, keeper)
        return session

    async def aclose(self) -> None:
        """Close the connections of every loop. Calls that are under way on them fail; later ones open new connections."""
        here = asyncio.get_running_loop()
        with self._lock:
            kept, self._kept = self._kept, {}
        for loop, (_, keeper) in kept.items():
            if loop is here:
                await keeper.aclose()
            elif not loop.is_closed():
                try:
                    loop.call_soon_threadsafe(_close_there, loop, keeper)
                except RuntimeError:
                    continue  # it was closed meanwhile, and its generators with it


async def _keep(session: aiohttp.ClientSession) -> AsyncGenerator[None, None]:
    """Hold a session until the loop closes its async generators."""
    try:
        yield
    finally:
        await session.close()


_closing: set[asyncio.Task[None]] = set()


def _close_there(loop: asyncio.AbstractEventLoop, keeper: AsyncGenerator[None, None]) -> None:
    async def close() -> None:
        await keeper.aclose()

    task = loop.create_task(close())
    _closing.add(task)
    task.add_done_callback(_closing.discard)


def send(
    session: aiohttp.ClientSession, url: URL, data: bytes
) -> aiohttp.client._RequestContextManager:
    """Begin a POST; redirects are not followed, since the key would go with them."""
    body = data if len(data) < _LARGE_BODY else io.BytesIO(data)
    return session.post(url, data=body, allow_redirects=False)


async def read_body(response: aiohttp.ClientResponse, largest: int) -> bytes | None:
    """Read a reply's body; ``None`` when it is larger than `largest` bytes, and then the connection is closed."""
    length = response.content_length
    if length is not None and length <= largest:
        try:
            return await response.read()
        except RuntimeError:
            raise _closed() from None
    pieces, size = [], 0
    while data := await read_some(response):
        size += len(data)
        if size > largest:
            response.close()
            return None
        pieces.append(data)
    return b"".join(pieces)


async def read_some(response: aiohttp.ClientResponse) -> bytes:
    """Read what has come of a reply's body, or wait for some; empty at its end."""
    try:
        return await response.content.readany()
    except RuntimeError:
        raise _closed() from None


def _closed() -> aiohttp.ClientError:
    # What aiohttp raises as a RuntimeError when the client was closed meanwhile.
    return aiohttp.ClientConnectionError("the client was closed")


def fault_of(error: Exception, call: str, faults: Faults, connect: float | None) -> LLMError:
    """Return what an exception of aiohttp or the system means.

    It must be raised outside of the ``except`` block: aiohttp's errors hold the request's headers, the key among them, and must
    not travel along as ``__context__``.

    Args:
        error: The exception.
        call: What was called, for the message.
        faults: Knows the secrets.
        connect: The timeout for connecting, in seconds.
    """
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return timeout_of(call, "connect", connect or 0.0)
    text = faults.clean(_told(error))
    if isinstance(error, aiohttp.ClientConnectorError):
        if error.errno == errno.EMFILE:
            mend = "raise the number of files this process may open (ulimit -n), or give connections= a bound"
        elif error.errno == errno.EADDRNOTAVAIL:
            mend = "the machine has no ports left for new connections: lower the concurrency or give connections= a bound"
        elif isinstance(error, aiohttp.ClientSSLError):
            mend = "check the certificate, and SSL_CERT_FILE for one of your own"
        elif isinstance(error, aiohttp.ClientConnectorDNSError):
            mend = "check the host's name in base_url and the network"
        else:
            mend = "check that the provider is running, and base_url"
        return _no_connection(f"{call}: can't connect: {text}; {mend}", sent=False)
    return _no_connection(
        f"{call}: the connection broke before the reply was complete: {text}; try again (retry=tn.Retry(on=llm.TRANSIENT))",
        sent=True,
    )


def timeout_of(call: str, which: str, seconds: float) -> LLMTimeout:
    """Return the error for a timeout that ran out."""
    waited = {
        "connect": "no connection",
        "first_token": "no first piece of the answer",
        "between_tokens": "no further piece of the answer",
        "total": "no whole reply",
    }[which]
    error = LLMTimeout(
        f"{call}: {waited} within {seconds:g} s; try again, or allow more with Timeouts({which}=...)"
    )
    error.which, error.seconds = which, seconds
    return error


def proxy_for(url: URL) -> str | None:
    """Return the proxy that the environment names for `url`, never one for this machine itself."""
    from urllib.request import getproxies, proxy_bypass

    host = url.host or ""
    if host == "localhost" or _is_loopback(host):
        return None
    proxy = getproxies().get(url.scheme)
    return None if proxy is None or proxy_bypass(host) else proxy


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _no_connection(message: str, *, sent: bool) -> ConnectionFailed:
    error = ConnectionFailed(message)
    error.sent = sent
    return error


def _told(error: Exception) -> str:
    if isinstance(error, aiohttp.ClientConnectorError):
        return error.os_error.strerror or str(error.os_error)
    if isinstance(error, aiohttp.ClientResponseError):
        return f"no HTTP ({error.message})"  # str(error) would name the URL, with its query
    return str(error) or type(error).__name__
