"""What a server owes to the browsers of the people who run it: no foreign page may use it through them.

By default no other origin gets an answer (CORS is off), requests that a foreign page sends are refused before any work, and a server on
the loopback interface without keys answers only to the interface's own names, so that a page can't reach it by a name of its own
(DNS rebinding).
"""

from __future__ import annotations

from urllib.parse import urlsplit

from tournant.serve.bodies import Message, Scope, Send
from tournant.serve.errors import HTTPError
from tournant.serve.settings import ServeSettings

_LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]", "::1"})
_ALLOWED_HEADERS = b"authorization, content-type"
_EXPOSED_HEADERS = b"retry-after"


class BrowserRules:
    """Decides by ``Host`` and ``Origin``.

    Args:
        settings: The server's settings.
    """

    def __init__(self, settings: ServeSettings) -> None:
        self._origins = frozenset(origin.rstrip("/").lower() for origin in settings.cors_origins)
        names = {name.lower() for name in settings.allowed_hosts}
        open_to_pages = settings.api_keys is None and settings.is_loopback
        self._hosts = (
            frozenset({*names, *_LOOPBACK, settings.host.lower()}) if open_to_pages else None
        )

    def check(self, scope: Scope) -> bytes | None:
        """Return the foreign origin that may have the response, or ``None`` where there is none.

        Raises:
            HTTPError: 421 for a host name that is not this server's, 403 for a page of another origin.
        """
        host = origin = None
        for name, value in scope["headers"]:
            if name == b"host":
                host = value
            elif name == b"origin":
                origin = value
        if (
            self._hosts is not None
            and host is not None
            and _name(host.decode("latin-1")) not in self._hosts
        ):
            raise HTTPError(
                421,
                "this server has no keys and answers only to the names of the loopback interface; "
                "call it by 127.0.0.1 or localhost, or start it with --allowed-host",
            )
        if origin is None:
            return None
        text = origin.decode("latin-1").rstrip("/").lower()
        if text in self._origins:
            found: bytes = origin
            return found
        if host is not None and _authority(text) == host.decode("latin-1").lower():
            return None
        raise HTTPError(
            403,
            "pages of other origins may not call this server; allow one with --cors-origin",
            "foreign_origin",
        )


def is_preflight(scope: Scope) -> bool:
    """Whether a browser asks whether it may ask."""
    return scope["method"] == "OPTIONS" and any(
        name == b"access-control-request-method" for name, _ in scope["headers"]
    )


def preflight_headers() -> list[tuple[bytes, bytes]]:
    """Return what the answer to such a question adds."""
    return [
        (b"access-control-allow-methods", b"GET, POST"),
        (b"access-control-allow-headers", _ALLOWED_HEADERS),
        (b"access-control-max-age", b"600"),
    ]


def with_origin(send: Send, origin: bytes) -> Send:
    """Return a ``send`` that lets pages of `origin` read the response."""

    async def allowing(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [
                *message.get("headers", ()),
                (b"access-control-allow-origin", origin),
                (b"access-control-expose-headers", _EXPOSED_HEADERS),
                (b"vary", b"Origin"),
            ]
        await send(message)

    return allowing


def _name(host: str) -> str:
    """Return a ``Host`` header without its port."""
    if host.startswith("["):
        return host.partition("]")[0].lower() + "]"
    return host.partition(":")[0].lower()


def _authority(origin: str) -> str:
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return ""
